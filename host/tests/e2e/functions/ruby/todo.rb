# frozen_string_literal: true

# In the place of a service on the Internet.
require "socket"

server = TCPServer.new("127.0.0.1", 9999)
loop do
  client = server.accept
  path = client.gets.to_s.split[1]
  nil until client.gets.to_s.strip.empty?
  client << "HTTP/1.0 200 OK\r\n\r\n" << (path == "/todos/2" ? '{"userId":13}' : "{}")
  client.close
rescue SystemCallError
  # It only looked whether somebody listens.
end
