//! Terminals, and streams that a client holds open.

use std::fs;

use serde_json::json;

use crate::{
    lifecycle::{FOREVER, running},
    node::{Node, is_able},
    same::{outcome, same},
    stdio::Wanted,
};

#[tokio::test(flavor = "multi_thread")]
async fn terminals_are_the_same() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    same(&node, "terminal", async |container| {
        let script = "tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all; stty size; \
            stat -c '%F %a %u %g %t' /dev/console /dev/pts/0 | sed 's/ [0-9a-f]*$//'; \
            grep -E ' /dev/(console|pts)' /proc/self/mountinfo; ps -o pid,tty | head -2; echo err >&2";
        let run = container.terminal().sh(script).run().await?;
        Ok(format!("{} {} {:?}\n{}", run.exit, run.stderr, run.events, run.stdout))
    })
    .await;
    same(&node, "terminal of a user", async |container| {
        let container = container.terminal().spec(|spec| {
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        });
        let run = container
            .sh("stat -Lc '%u %g %a' /proc/self/fd/0; echo x > /dev/tty; echo $?")
            .run()
            .await?;
        Ok(format!("{} {}", run.exit, run.stdout))
    })
    .await;
    same(&node, "terminal's first size", async |container| {
        let container = container.terminal().spec(|spec| {
            spec["process"]["consoleSize"] = json!({ "height": 33, "width": 77 });
        });
        Ok(container.sh("stty size").run().await?.stdout)
    })
    .await;
    same(&node, "terminal resized", async |container| {
        let script = "trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.02; done";
        let task = running(container.terminal(), script).await?;
        let told = outcome(&task.resize(91, 19).await);
        task.stdio.read_until("19 91").await;
        let exit = task.wait().await?;
        task.delete().await?;
        Ok(format!("{told} {exit}"))
    })
    .await;
    same(&node, "terminal's keys", async |container| {
        let script = "trap 'echo interrupted; exit 6' INT; echo ready; read line; echo \"got $line\"; \
            while :; do sleep 0.02; done";
        let mut task = running(container.terminal().stdin(), script).await?;
        task.stdio.write("typed\n").await;
        task.stdio.read_until("got typed").await;
        task.stdio.write("\u{3}").await;
        let exit = task.wait().await?;
        let (stdout, _) = task.stdio.finish().await;
        task.delete().await?;
        Ok(format!("{exit} {stdout}"))
    })
    .await;
    same(&node, "terminal's end of input", async |container| {
        let mut task = running(container.terminal().stdin(), "echo ready; cat; echo ended").await?;
        task.stdio.write("one\n\u{4}").await;
        let exit = task.wait().await?;
        let (stdout, _) = task.stdio.finish().await;
        task.delete().await?;
        Ok(format!("{exit} {stdout}"))
    })
    .await;
    same(&node, "resized without a terminal", async |container| {
        let task = running(container, FOREVER).await?;
        let told = outcome(&task.resize(80, 25).await);
        task.remove().await?;
        Ok(told)
    })
    .await;
    same(&node, "input left open until told", async |container| {
        let mut task = running(container.stdin(), "echo ready; cat; echo ended").await?;
        task.stdio.write("some\n").await;
        task.stdio.read_until("some").await;
        task.stdio.close_stdin();
        let closed = outcome(&task.close_io("").await);
        let again = outcome(&task.close_io("").await);
        let exit = task.wait().await?;
        let (stdout, _) = task.stdio.finish().await;
        task.delete().await?;
        Ok(format!("{closed} {again} {exit} {stdout}"))
    })
    .await;
    same(&node, "silent", async |container| {
        let container = container
            .silent()
            .sh("echo lost; stat -Lc '%F' /proc/self/fd/1 > /mnt/log");
        let container =
            container.spec(|spec| crate::spec::mount(spec, "bind", "@run@", "/mnt", "rbind"));
        let run = container.run().await?;
        let log = fs::read_to_string(container.run_dir().join("log")).unwrap();
        Ok(format!("{} {:?} {log}", run.exit, run.events))
    })
    .await;
    same(&node, "terminal of a further process", async |container| {
        let task = running(container, FOREVER).await?;
        let mut process =
            crate::spec::process(&["sh", "-c", "tty; stty size; echo err >&2; exit 4"]);
        process["terminal"] = true.into();
        let wanted = Wanted {
            terminal: true,
            ..Wanted::default()
        };
        let mut exec = task.exec("one", &process, wanted).await?;
        task.start_process("one").await?;
        let exit = task.wait_process("one").await?;
        let (stdout, stderr) = exec.stdio.finish().await;
        task.delete_process("one").await?;
        task.remove().await?;
        Ok(format!("{} {exit} {stdout} {stderr}", exec.id))
    })
    .await;
    node.end().await;
}
