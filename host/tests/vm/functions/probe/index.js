// What a function can reach beyond itself, and what it can use up: `/probe?targets=a:1,b:2`, `/memory`, `/burn?ms=1`.

const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');

// Numbers of x86-64's system calls, with arguments that only a right would make useful. Perl passes no constant strings.
const CALLS = {
  add_key: '248, $user, $probe, $x, 1, -3',
  bpf: '321, 5, 0, 0',
  clock_settime: '227, 0, 0',
  init_module: '175, 0, 0, $none',
  io_uring_setup: '425, 1, 0',
  keyctl: '250, 0, -3, 1',
  kexec_load: '246, 0, 0, 0, 0',
  mount: '165, $none, $tmp, $tmpfs, 0, 0',
  open_by_handle_at: '304, -100, 0, 0',
  perf_event_open: '298, 0, 0, -1, -1, 0',
  pivot_root: '155, $tmp, $tmp',
  reboot: '169, 0, 0, 0, 0',
  setns: '308, 0, 0',
  swapon: '167, $tmp, 0',
  unshare_user: '272, 0x10000000',
  userfaultfd: '323, 0',
};
const EPERM = 1;
const ENOSYS = 38;

const FILES = ['/proc/sys/kernel/core_pattern', '/proc/sys/kernel/hostname', '/proc/sysrq-trigger',
  '/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/cgroup.procs', '/sys/kernel/mm/ksm/run', '/etc/passwd', '/usr/bin/node'];
const HIDDEN = ['/var/lib/opr', '/run/opr', '/run/containerd', '/run/systemd', '/proc/kcore', '/dev/kmsg', '/dev/mem',
  '/dev/vda', '/dev/fuse', '/dev/net/tun', '/sys/kernel/debug/x86', '/sys/firmware/acpi'];

function calls() {
  const lines = Object.entries(CALLS).map(([name, call]) => `$! = 0; syscall(${call}); print "${name} ", $! + 0, "\\n";`);
  const texts = 'my ($user, $probe, $x, $none, $tmp, $tmpfs) = ("user", "probe", "x", "none", "/tmp", "tmpfs");';
  const told = execFileSync('perl', ['-e', [texts, ...lines].join('\n')], { encoding: 'utf8' });
  return told.trim().split('\n').map((line) => line.split(' '))
    .filter(([, errno]) => ![EPERM, ENOSYS].includes(Number(errno))).map(([name, errno]) => `call ${name}: ${errno}`);
}

function can(work) {
  try {
    return work() ?? true;
  } catch {
    return false;
  }
}

// Whether something can be read there; what is masked is empty.
function holds(path) {
  if (fs.statSync(path).isDirectory()) return fs.readdirSync(path).length > 0;
  const file = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  return fs.readSync(file, Buffer.alloc(1)) > 0;
}

// All at once: what drops a connection lets it wait.
function connected(targets) {
  const attempt = (target) => {
    const [host, port] = target.split(':');
    return `(timeout 3 bash -c ': < /dev/tcp/${host}/${port}' 2> /dev/null && echo ${target}) &`;
  };
  const told = execFileSync('bash', ['-c', [...targets.map(attempt), 'wait'].join('\n')], { encoding: 'utf8' });
  return told.split('\n').filter(Boolean);
}

function probe(targets) {
  const found = calls();
  for (const file of FILES) {
    if (can(() => fs.appendFileSync(file, ''))) found.push(`write ${file}`);
  }
  for (const path of HIDDEN) {
    if (can(() => holds(path))) found.push(`read ${path}`);
  }
  const processes = fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name)).length;
  if (processes > 4) found.push(`see ${processes} processes`);
  found.push(...connected(targets).map((target) => `connect ${target}`));
  return found;
}

module.exports = async ({ req, res }) => {
  switch (req.path) {
    case '/probe':
      return res.json(probe((req.query.targets ?? '').split(',').filter(Boolean)));
    case '/address':
      return res.text(Object.values(os.networkInterfaces()).flat().find((link) => !link.internal)?.address ?? 'none');
    case '/memory': {
      const kept = [];
      for (;;) kept.push(Buffer.alloc(16 * 1024 * 1024, 1));
    }
    case '/burn': {
      const end = Date.now() + Number(req.query.ms);
      let rounds = 0;
      while (Date.now() < end) rounds += 1;
      return res.text(String(rounds));
    }
    default:
      return res.text(String(process.pid));
  }
};
