// In the place of a service on the Internet.
const answer = (request, response) => response.end(request.url === '/todos/2' ? '{"userId":13}' : '{}');
require('node:http').createServer(answer).listen(9999, '127.0.0.1');
