// Read, not executed.
repositories { mavenCentral() }

dependencies {
    implementation("org.greetings:greeting:1.0") // It needs another one, `word`.
    implementation("org.jetbrains.kotlinx:kotlinx-coroutines-core:1.8.0")
    testImplementation("junit:junit:4.13.2")
}
