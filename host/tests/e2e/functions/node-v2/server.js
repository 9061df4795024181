// A server of protocol v2, as the images of that protocol have one.
const http = require('node:http');
const handler = require('./index.js');

http.createServer((request, response) => {
    const chunks = [];
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('end', () => {
        const { payload, variables } = JSON.parse(Buffer.concat(chunks));
        const isKnown = request.headers['x-internal-challenge'] === process.env.INTERNAL_RUNTIME_KEY;
        const answer = (document) => {
            response.writeHead(isKnown ? 200 : 401, { 'content-type': 'application/json' });
            response.end(JSON.stringify({ response: document, stdout: '', stderr: '' }));
        };
        handler({ payload, variables }, { json: answer });
    });
}).listen(3000);
