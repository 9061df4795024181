// A server process with state of its own, for tests.

'use strict';

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');

// Where this node knows the flag that the image's start command carries, tests run with it too.
const FLAG = '--experimental-async-context-frame';
const FLAGS = [FLAG].filter((flag) => process.allowedNodeEnvironmentFlags.has(flag));
// Without it, or its successor in later nodes, a process whose loop had to be interrupted answers and then ends.
const SURVIVES_INTERRUPTION = FLAGS.length > 0 || Number.parseInt(process.versions.node, 10) >= 24;

class Server {
  /** Started and listening, with the function in `codeDir`. */
  static async start(codeDir, env = {}) {
    const server = new Server();
    Object.assign(server, { codeDir, env });
    server.state = fs.mkdtempSync(path.join(os.tmpdir(), 'runtime-'));
    fs.mkdirSync(path.join(server.state, 'logs'));
    fs.mkdirSync(path.join(server.state, 'telemetry'));
    fs.writeFileSync(path.join(server.state, 'telemetry/timings.txt'), 'local_download=0.200\nremote_download=10.560\n');
    await server.spawn();
    return server;
  }

  async spawn() {
    this.port = await freePort();
    const args = [...FLAGS, path.join(__dirname, 'serve.js'), String(this.port), this.codeDir, this.state];
    const env = { PATH: process.env.PATH, ...this.env };
    this.child = spawn(process.execPath, args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    this.output = '';
    this.exited = new Promise((resolve) => this.child.once('exit', (code, signal) => resolve(signal ?? code)));
    this.child.stderr.on('data', (chunk) => (this.output += chunk));
    await new Promise((resolve, reject) => {
      this.child.stdout.on('data', (chunk) => {
        this.output += chunk;
        if (this.output.includes('HTTP server successfully started!')) resolve();
      });
      this.exited.then((status) => reject(new Error(`ended with ${status}: ${this.output}`)));
    });
  }

  /** Starts it again where it has ended as it may, see SURVIVES_INTERRUPTION. */
  async revive() {
    if (SURVIVES_INTERRUPTION) return;
    const isAlive = await this.fetch('/__opr/health').then(() => true, () => false);
    if (isAlive) return;
    await this.exited;
    await this.spawn();
  }

  fetch(target = '/', headers = {}, options = {}) {
    return fetch(`http://127.0.0.1:${this.port}${target}`, { headers, ...options });
  }

  logFiles() {
    return fs.readdirSync(path.join(this.state, 'logs'));
  }

  readLog(name) {
    const file = path.join(this.state, 'logs', name);
    return fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : '';
  }

  clearLogs() {
    for (const name of this.logFiles()) fs.unlinkSync(path.join(this.state, 'logs', name));
  }

  /** Ends it by SIGTERM; its exit status. */
  async stop(signal = 'SIGTERM') {
    this.child.kill(signal);
    const status = await this.exited;
    fs.rmSync(this.state, { recursive: true, force: true });
    return status;
  }
}

function freePort() {
  return new Promise((resolve) => {
    const probe = net.createServer().listen(0, () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });
}

module.exports = { Server };
