use opr_host::executor::command::CommandError;

use super::*;

#[tokio::test]
async fn a_command_tells_its_output_and_its_code() {
    let node = Node::start().await;
    let id = instance("a");
    let missing = node
        .executor
        .command(&id, "say=one", None)
        .await
        .unwrap_err();
    assert!(
        matches!(missing, CommandError::NotFound { .. }),
        "{missing}"
    );
    node.executor
        .create(spec("a", Protocol::V5).into())
        .await
        .unwrap();
    let written = node
        .executor
        .command(&id, "say=one say=two", None)
        .await
        .unwrap();
    assert_eq!(
        (written.stdout, written.stderr),
        (b"one\r\ntwo\r\n".to_vec(), Vec::new())
    );
    let failed = node
        .executor
        .command(&id, "say=why exit=3", None)
        .await
        .unwrap_err();
    assert_eq!(
        failed.to_string(),
        "the command in instance a exited with code 3, having written: why"
    );
}

#[tokio::test]
async fn a_command_is_killed_after_its_time_and_where_its_caller_goes_away() {
    let node = Node::start().await;
    let id = instance("a");
    node.executor
        .create(spec("a", Protocol::V5).into())
        .await
        .unwrap();
    let late = node
        .executor
        .command(&id, "sleep", Some(Duration::from_millis(20)))
        .await;
    assert!(
        matches!(late, Err(CommandError::Timeout { .. })),
        "{late:?}"
    );
    node.until_running(0).await;
    let command = tokio::spawn({
        let (executor, id) = (node.executor.clone(), id.clone());
        async move { executor.command(&id, "sleep", None).await }
    });
    node.until_running(1).await;
    command.abort();
    node.until_running(0).await;
    assert_eq!(node.adapter.n_sandboxes(), 1);
}

#[tokio::test]
async fn an_instance_is_not_reaped_while_a_command_runs_in_it() {
    let node = Node::start_with(|config| {
        config.executor.inactive_threshold_s = 0;
        config.executor.maintenance_interval_s = 1;
    })
    .await;
    for id in ["busy", "idle"] {
        node.executor
            .create(spec(id, Protocol::V5).into())
            .await
            .unwrap();
    }
    let command = tokio::spawn({
        let executor = node.executor.clone();
        async move { executor.command(&instance("busy"), "wait", None).await }
    });
    let reaped = async {
        while node.executor.get(&instance("idle")).is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reaped)
        .await
        .unwrap();
    assert!(node.executor.get(&instance("busy")).is_some());
    node.go.notify_one();
    assert!(command.await.unwrap().is_ok());
}
