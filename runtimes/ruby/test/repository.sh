#!/bin/bash
# Serves a repository of one gem, as Bundler asks for them, on port 8001.
set -euo pipefail
cd "$(mktemp -d)"
mkdir -p lib public/gems public/info
echo 'module Greeting; TEXT = "Greetings!"; end' > lib/greeting.rb
cat > greeting.gemspec << 'END'
Gem::Specification.new("greeting", "1.0.0") do |gem|
  gem.summary = "Says hello"
  gem.authors = ["Greetings"]
  gem.files = ["lib/greeting.rb"]
end
END
gem build --quiet --output public/gems/greeting-1.0.0.gem greeting.gemspec 2> /dev/null
printf -- '---\n1.0.0 |checksum:%s\n' "$(sha256sum public/gems/greeting-1.0.0.gem | cut -d ' ' -f 1)" > public/info/greeting
printf 'created_at: 2026-01-01T00:00:00Z\n---\ngreeting 1.0.0 %s\n' "$(md5sum public/info/greeting | cut -d ' ' -f 1)" \
    > public/versions
cat > serve.rb << 'END'
require "socket"

server = TCPServer.new("127.0.0.1", 8001)
loop do
  Thread.new(server.accept) do |client|
    path = client.gets.to_s.split[1].to_s
    nil until client.gets.to_s.strip.empty?
    file = "public#{path}"
    found = File.file?(file)
    body = found ? File.binread(file) : ""
    client << "HTTP/1.1 #{found ? "200 OK" : "404 Not Found"}\r\ncontent-length: #{body.bytesize}\r\nconnection: close\r\n\r\n" << body
    client.close
  rescue SystemCallError
    # It only looked whether somebody listens.
  end
end
END
setsid ruby serve.rb < /dev/null > /dev/null 2>&1 &
until (exec 3<> /dev/tcp/127.0.0.1/8001) 2> /dev/null; do sleep 0.01; done
