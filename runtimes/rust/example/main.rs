//! Says hello and tells what it was asked: `curl http://localhost:3000/anything?name=you`.

use openruntimes::{Context, Response};
use serde_json::json;

pub fn main(context: Context) -> Response {
    let name = context
        .req
        .query
        .get("name")
        .map_or("world", String::as_str);
    context.log(format!("Said hello to {name}."));
    let answer = json!({
        "message": format!("Hello, {name}!"),
        "method": context.req.method,
        "path": context.req.path,
        "runtime": "rust",
    });
    context.res.json(answer, None, None)
}
