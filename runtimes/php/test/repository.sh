#!/bin/bash
# Serves a repository of one package, as Composer knows them, on port 8001.
set -euo pipefail
folder=$(mktemp -d)
php -- "$folder" << 'END'
<?php
[, $folder] = $argv;
$package = [
    'name' => 'greetings/greeting',
    'version' => '1.0.0',
    'autoload' => ['files' => ['greeting.php']],
];
$archive = new ZipArchive();
$archive->open("$folder/greeting.zip", ZipArchive::CREATE);
$archive->addFromString('greeting/composer.json', json_encode($package));
$archive->addFromString('greeting/greeting.php', '<?php namespace Greetings; function text() { return "Greetings!"; }');
$archive->close();
$package['dist'] = ['type' => 'zip', 'url' => 'http://127.0.0.1:8001/greeting.zip'];
file_put_contents("$folder/packages.json", json_encode(['packages' => [$package['name'] => ['1.0.0' => $package]]]));
END
setsid php -S 127.0.0.1:8001 -t "$folder" < /dev/null > /dev/null 2>&1 &
until (exec 3<> /dev/tcp/127.0.0.1/8001) 2> /dev/null; do sleep 0.01; done
