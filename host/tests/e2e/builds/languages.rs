//! Functions in the languages of the upstream suite, built and executed in this project's images. The service on the
//! Internet that they ask there is one in the sandbox here.

use super::*;

const CPP: &str = "openruntimes/cpp:v5-23";
const PHP: &str = "openruntimes/php:v5-8.4";
const PYTHON: &str = "openruntimes/python:v5-3.13";
const RUBY: &str = "openruntimes/ruby:v5-3.3";
const STATIC: &str = "openruntimes/static:v5-1";

#[test]
fn functions_of_other_languages_are_built_and_run() -> Result<()> {
    let cases: &[(&str, Case)] = cases![
        c23_to_26_a_static_site,
        c30_to_34_a_php_function,
        c50_to_55_a_site_that_is_rendered,
        c78_a_custom_php_function,
        c79_a_custom_php_mock_function,
        c80_a_custom_node_function,
        c81_a_custom_python_function,
        c82_a_custom_ruby_function,
        c83_a_custom_cpp_function,
    ];
    let runtimes = ["cpp", "node", "php", "python", "ruby", "static"];
    run_with(&runtimes, cases)
}

/// What the upstream suite starts with.
fn start(command: &str) -> String {
    format!("cp /tmp/code.tar.gz /mnt/code/code.tar.gz && nohup helpers/start.sh \"{command}\"")
}

fn c23_to_26_a_static_site(node: &Node) -> Result<()> {
    let more = json!({
        "image": STATIC, "entrypoint": "", "outputDirectory": "./dist",
        "command": build_command("bash build.sh"),
    });
    let built = built(node, &order(node, "static-build", "static", more)?)?;
    ensure!(!output(&built).is_empty() && built["size"].as_u64() > Some(0));
    let id = "static-exec";
    let order = json!({
        "runtimeId": id, "image": STATIC, "source": path(&built)?,
        "runtimeEntrypoint": start("bash helpers/server.sh"),
    });
    create(node, &order, 201)?;
    let executions = format!("/v1/runtimes/{id}/executions");
    let answer = node.api("POST", &executions, &json!({ "timeout": 45 }))?;
    let result = answer.json();
    ensure!(result["statusCode"] == 200, "{result}");
    let body = result["body"].as_str().unwrap_or_default();
    ensure!(body.contains("Website content"), "{result}");
    delete(node, id, 200)
}

fn c30_to_34_a_php_function(node: &Node) -> Result<()> {
    let more = json!({
        "image": PHP, "entrypoint": "index.php", "command": build_command("composer install"),
    });
    let built = built(node, &order(node, "php-build", "php-mock", more)?)?;
    let id = "php-exec";
    let order = json!({
        "runtimeId": id, "image": PHP, "source": path(&built)?, "entrypoint": "index.php",
        "runtimeEntrypoint": start("php src/server.php"),
    });
    create(node, &order, 201)?;
    let executions = format!("/v1/runtimes/{id}/executions");
    let answer = node.api("POST", &executions, &json!({ "timeout": 45 }))?;
    let result = answer.json();
    ensure!(result["statusCode"] == 200, "{result}");
    ensure!(result["headers"]["x-key"] == "aValue", "{result}");
    let warm = json!({ "body": "test payload", "variables": { "customVariable": "mySecret" } });
    let answer = node.api("POST", &executions, &warm)?;
    ensure!(answer.status == 200, "{}", answer.text());
    delete(node, id, 200)
}

fn c50_to_55_a_site_that_is_rendered(node: &Node) -> Result<()> {
    let env = "source /usr/local/server/helpers/astro/env.sh";
    let bundle = "bash /usr/local/server/helpers/astro/bundle.sh";
    let command = build_command(&format!(
        "{env} && npm install && npm run build && {bundle}"
    ));
    let more = json!({ "command": command, "outputDirectory": "./dist", "memory": 2048 });
    let built = built(node, &order(node, "ssr-build", "astro", more)?)?;
    let id = "ssr-exec";
    let call = json!({
        "image": crate::IMAGE, "source": path(&built)?, "path": "/logs", "timeout": 45,
        "runtimeEntrypoint": start(&format!("{env} && bash helpers/astro/server.sh")),
    });
    let execute = |format: &str| -> Result<Value> {
        let headers = [
            ("authorization", &*format!("Bearer {SECRET}")),
            ("content-type", "application/json"),
            ("accept", "application/json"),
            ("x-executor-response-format", format),
        ];
        let url = node.api_url(&format!("/v1/runtimes/{id}/executions"));
        let answer = request("POST", &url, &headers, call.to_string().as_bytes())?;
        let result = answer.json();
        ensure!(result["statusCode"] == 200, "{result}");
        Ok(result)
    };
    let result = execute("0.11.0")?;
    let text = |name: &str| result[name].as_str().unwrap_or_default();
    ensure!(text("body").contains("<p>OK</p>"), "{result}");
    let cookie = |n: u32| format!("astroCookie{n}=astroValue{n}; Max-Age=1800; HttpOnly");
    let cookies = &result["headers"]["set-cookie"];
    ensure!(*cookies == json!([cookie(1), cookie(2)]), "{cookies}");
    for line in ["Open runtimes log", "A developer log"] {
        ensure!(text("logs").contains(line), "{result}");
    }
    ensure!(text("errors").contains("Open runtimes error"), "{result}");
    let older = execute("0.10.0")?;
    let cookies = &older["headers"]["set-cookie"];
    ensure!(*cookies == json!(cookie(2)), "{cookies}");
    delete(node, id, 200)
}

/// A function of the custom runtimes' table, beside what takes the place of the service that it asks.
struct Custom {
    function: &'static str,
    image: &'static str,
    entrypoint: &'static str,
    build: &'static str,
    /// The program and the file in the function's folder.
    todo: Option<(&'static str, &'static str)>,
}

impl Custom {
    fn check(&self, node: &Node) -> Result<()> {
        let Self {
            function,
            image,
            entrypoint,
            build,
            todo,
        } = self;
        let more = json!({
            "image": image, "entrypoint": entrypoint, "timeout": 120,
            "command": build_command(build),
            "variables": { "SSL_CERT_FILE": "/mnt/code/ca-certificates.crt" },
        });
        let built = built(
            node,
            &order(node, &format!("custom-build-{function}"), function, more)?,
        )?;
        let todo = todo.map_or_else(String::new, |(program, file)| {
            format!(
                "(tar -xzf /tmp/code.tar.gz -C /tmp ./{file} && exec {program} /tmp/{file}) & \
                 until (exec 3<>/dev/tcp/127.0.0.1/9999) 2>&-; do sleep 0.01; done; "
            )
        });
        let start =
            "cp /tmp/code.tar.gz /mnt/code/code.tar.gz && nohup helpers/start.sh helpers/server.sh";
        let more = json!({
            "image": image, "entrypoint": entrypoint, "timeout": 120, "method": "POST",
            "runtimeEntrypoint": format!("{todo}{start}"),
            "variables": {
                "TEST_VARIABLE": "Variable secret", "TODO_URL": "http://127.0.0.1:9999/todos",
            },
            "path": "/my-awesome/path?param=paramValue",
            "headers": {
                "host": "cloud.appwrite.io", "x-forwarded-proto": "https",
                "content-type": "application/json",
            },
            "body": "{\"id\":\"2\"}",
        });
        let result = execute(
            node,
            &format!("custom-execute-{function}"),
            path(&built)?,
            more,
        )?;
        ensure!(result["errors"] == "", "{result}");
        let text = |name: &str| result[name].as_str().unwrap_or_default();
        ensure!(text("logs").contains("Sample Log"), "{result}");
        let body: Value = serde_json::from_str(text("body"))?;
        let expected = json!({
            "isTest": true, "message": "Hello Open Runtimes 👋", "variable": "Variable secret",
            "url": "https://cloud.appwrite.io/my-awesome/path?param=paramValue",
            "todo": { "userId": 13 },
        });
        ensure!(body == expected, "{body}");
        Ok(())
    }
}

/// Its package comes from a repository in the archive, as the one upstream asks for is on the Internet.
fn c78_a_custom_php_function(node: &Node) -> Result<()> {
    let custom = Custom {
        function: "php",
        image: PHP,
        entrypoint: "index.php",
        build: "composer install",
        todo: Some(("php", "todo.php")),
    };
    custom.check(node)
}

fn c79_a_custom_php_mock_function(node: &Node) -> Result<()> {
    let custom = Custom {
        function: "php-mock",
        image: PHP,
        entrypoint: "index.php",
        build: "composer install",
        todo: None,
    };
    custom.check(node)
}

fn c80_a_custom_node_function(node: &Node) -> Result<()> {
    let custom = Custom {
        function: "node",
        image: crate::IMAGE,
        entrypoint: "index.js",
        build: "npm i",
        todo: Some(("node", "todo.js")),
    };
    custom.check(node)
}

fn c81_a_custom_python_function(node: &Node) -> Result<()> {
    let custom = Custom {
        function: "python",
        image: PYTHON,
        entrypoint: "index.py",
        build: "pip install -r requirements.txt",
        todo: Some(("python3", "todo.py")),
    };
    custom.check(node)
}

fn c82_a_custom_ruby_function(node: &Node) -> Result<()> {
    let custom = Custom {
        function: "ruby",
        image: RUBY,
        entrypoint: "index.rb",
        build: "",
        todo: Some(("ruby", "todo.rb")),
    };
    custom.check(node)
}

fn c83_a_custom_cpp_function(node: &Node) -> Result<()> {
    let custom = Custom {
        function: "cpp",
        image: CPP,
        entrypoint: "index.cc",
        build: "",
        todo: Some(("perl", "todo.pl")),
    };
    custom.check(node)
}
