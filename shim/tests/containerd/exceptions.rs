//! Where the shim differs from runc on purpose.

/// A case in which the two outcomes need not be the same.
pub(crate) struct Exception {
    pub(crate) case: &'static str,
    /// What our outcome has in it.
    pub(crate) ours: &'static str,
    #[expect(dead_code, reason = "it is for the reader")]
    pub(crate) reason: &'static str,
}

pub(crate) const EXCEPTIONS: &[Exception] = &[
    Exception {
        case: "invalid capability",
        ours: "refused",
        reason: "runc warns and goes on without it; what is unknown is an error here",
    },
    Exception {
        case: "invalid mapping without a namespace",
        ours: "refused",
        reason: "runc ignores mappings that nothing can use",
    },
    Exception {
        case: "invalid read-only path that is relative",
        ours: "refused",
        reason: "runc looks for it in its own working folder",
    },
    Exception {
        case: "invalid args with a zero byte",
        ours: "refused",
        reason: "runc finds out when the program is to be run",
    },
    Exception {
        case: "program is no program",
        ours: "refused",
        reason: "a start answers what the execution did, where runc has answered before it",
    },
    Exception {
        case: "program without its interpreter",
        ours: "refused",
        reason: "a start answers what the execution did, where runc has answered before it",
    },
    Exception {
        case: "hook poststart",
        ours: "\"status\":\"running\"",
        reason: "the process runs by then, which runc has not noted yet",
    },
    Exception {
        case: "hook poststart fails",
        ours: "exit 0",
        reason: "the spec has it logged, and the container go on",
    },
    Exception {
        case: "hook startContainer fails",
        ours: "refused",
        reason: "a start answers that the program was not executed, where runc has answered before it",
    },
    Exception {
        case: "cgroup devices list",
        ours: "c 5:2 rwm",
        reason: "runc let every container at network tunnels (10:200) until 1.2",
    },
    Exception {
        case: "cgroup devices more",
        ours: "b 1:12 r",
        reason: "as with the list",
    },
    Exception {
        case: "cgroup devices absent",
        ours: "c 5:2 rwm",
        reason: "as with the list",
    },
    Exception {
        case: "device that is a default one",
        ours: "1 3 600 3",
        reason: "runc opens it again without the right to",
    },
    Exception {
        case: "tmpfs defaults",
        ours: "exit 0",
        reason: "the word says nothing, in fstab(5) as well",
    },
    Exception {
        case: "bind without the option",
        ours: "exit 0",
        reason: "the type says it",
    },
    Exception {
        case: "root shared",
        ours: "/ / rw,relatime shared",
        reason: "the spec has the container's root so; runc leaves it private",
    },
    Exception {
        case: "root rshared",
        ours: "/ / rw,relatime shared",
        reason: "the spec has the container's root so; runc leaves it private",
    },
    Exception {
        case: "domain name",
        ours: "example.org",
        reason: "the spec has it since 1.1, which this runc does not read",
    },
    Exception {
        case: "root unbindable",
        ours: "/ / rw,relatime unbindable",
        reason: "the spec has the container's root so; runc leaves it private",
    },
    Exception {
        case: "seccomp flags",
        ours: "Seccomp:\t2",
        reason: "this version of runc has none",
    },
    Exception {
        case: "invalid rdt where absent",
        ours: "refused",
        reason: "runc ignores what the machine has not",
    },
    Exception {
        case: "exec umask",
        ours: "0027",
        reason: "the spec has it for each process, runc for the first one alone",
    },
    Exception {
        case: "exec oom score",
        ours: "300",
        reason: "the spec has it for each process, runc for the first one alone",
    },
    Exception {
        case: "devices of a user namespace",
        ours: "drwxrwxrwt    2 0        0               40  mqueue",
        reason: "runc's is owned by a group of the host",
    },
    Exception {
        case: "user namespace's files",
        ours: "drwxrwxrwt    2 0        0               40",
        reason: "runc's message queues are owned by a group of the host",
    },
    Exception {
        case: "caps unknown ambient is dropped",
        ours: "refused",
        reason: "what the kernel refuses is an error here; runc warns and goes on without it",
    },
    Exception {
        case: "signals",
        ours: "SigIgn:\t0000000000000000",
        reason: "runc passes on what its own starter ignored",
    },
];
