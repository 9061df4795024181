#!/bin/bash
# Makes a repository of two libraries in /tmp/repository, as Maven lays them out.
set -euo pipefail
folder=$(mktemp -d)
mkdir -p "$folder/org/greetings"
cd "$folder"
echo 'package org.greetings; class Word { static String text() { return "Greetings"; } }' > org/greetings/Word.java
echo 'package org.greetings; public class Greeting { public static String text() { return Word.text() + "!"; } }' \
    > org/greetings/Greeting.java
javac org/greetings/*.java

# publish ARTIFACT CLASS DEPENDENCIES
publish() {
    local to="/tmp/repository/org/greetings/$1/1.0"
    mkdir -p "$to"
    jar --create --file "$to/$1-1.0.jar" "org/greetings/$2.class"
    printf '<project><modelVersion>4.0.0</modelVersion><groupId>org.greetings</groupId><artifactId>%s</artifactId>%s%s</project>' \
        "$1" '<version>1.0</version>' "$3" > "$to/$1-1.0.pom"
}

word='<groupId>org.greetings</groupId><artifactId>word</artifactId><version>1.0</version>'
publish word Word ''
publish greeting Greeting "<dependencies><dependency>$word</dependency></dependencies>"
