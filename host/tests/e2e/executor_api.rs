//! The executor API, as its clients use it.

use anyhow::Result;
use serde_json::json;

use crate::node::Node;

#[test]
fn a_client_starts_executes_lists_and_deletes_a_runtime() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start()?;
    node.import_runtime("node")?;
    let text = "module.exports = async ({ req, res, log }) => { log('seen'); return res.json({ got: req.bodyText }); };";
    let source = node.archive(text)?;

    assert_eq!(
        node.api("GET", "/v1/runtimes", &json!({}))?.json(),
        json!([])
    );
    assert_eq!(node.api("GET", "/v1/runtimes/id", &json!({}))?.status, 404);
    assert_eq!(
        node.api("GET", "/v1/unknown", &json!({}))?.json()["message"],
        "Not Found"
    );

    let execution = json!({
        "image": crate::IMAGE, "source": source, "entrypoint": "index.js",
        "runtimeEntrypoint": crate::START, "body": "payload", "method": "POST", "timeout": 45,
    });
    for _ in 0..2 {
        let answer = node.api("POST", "/v1/runtimes/test/executions", &execution)?;
        assert_eq!(answer.status, 200, "{}\n{}", answer.text(), node.log());
        let result = answer.json();
        assert_eq!(result["statusCode"], 200, "{result}");
        assert_eq!(result["body"], "{\"got\":\"payload\"}");
        assert!(
            result["logs"]
                .as_str()
                .is_some_and(|logs| logs.contains("seen")),
            "{result}"
        );
        assert_eq!(result["errors"], "");
    }
    let listed = node.api("GET", "/v1/runtimes", &json!({}))?.json();
    assert_eq!(listed[0]["name"], "executor-test");
    assert_eq!(listed[0]["listening"], 1);
    assert_eq!(
        node.api("DELETE", "/v1/runtimes/test", &json!({}))?.status,
        200
    );
    assert_eq!(
        node.api("DELETE", "/v1/runtimes/test", &json!({}))?.status,
        404
    );
    Ok(())
}
