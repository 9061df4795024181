use super::*;

fn load(text: &str, vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Config::load(Some(file.path()), &|name| {
        vars.iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned())
    })
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = load(
        "gateway_listen = '127.0.0.1:1'\n[executor]\nsecret = 'file'",
        &[(env::SECRET, "environment")],
    )
    .unwrap();
    assert_eq!(config.executor.secret, "environment");
    assert_eq!(config.gateway_listen.port(), 1);
}

#[test]
fn a_class_of_the_file_stands_beside_the_ones_that_always_exist() {
    let config = load("[class.gpu]\n'cpu.weight' = 500\noutbound = 'none'", &[]).unwrap();
    let names: Vec<_> = config.class.keys().map(ClassName::as_str).collect();
    assert_eq!(names, ["build", "function", "gpu", "runtime"]);
}

#[test]
fn a_wrong_value_names_itself_and_what_is_accepted() {
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let error = load(text, &[]).unwrap_err();
        let chain = format!("{:#}", anyhow::Error::new(error));
        assert!(chain.contains(expected), "{chain}");
    }
    check("nonsense = 1", "unknown field `nonsense`");
    check("log = 'a'\n\nlog = 1", "line 3: duplicate key");
    check(
        "[class.a]\n'cpu.weight' = 0",
        "line 2: 0 is not from 1 to 10000",
    );
    check(
        "[class.a]\ndisk_mib = 1",
        "line 2: 1 is not 0, or 32 or more",
    );
    check("[class.a]\n\n'pids.max' = 0", "line 3: 0 is not 1 or more");
    check(
        "[class.a]\n'cpu.max' = 0.0",
        "line 2: 0 is no number of processors",
    );
    check(
        "[class.a]\n'io.max' = ['sda wbps=1']",
        "line 2: \"sda wbps=1\" is not as in",
    );
    check("[class.a]\n'io.max' = ['8:0 speed=1']", "is not as in");
    check("[class.a]\n'memory.min' = -1", "line 2: invalid value");
    check("state_dir = 'here'", "must be an absolute path");
    let budget =
        "expected MiB, 1 or more, or a share of the machine's memory from \"1%\" to \"1000%\"";
    for wrong in ["0", "-1", "true", "'75'", "'0%'", "'much%'", "'NaN%'"] {
        let text = format!("[admission]\n'memory.budget' = {wrong}");
        check(&text, "line 2: invalid ");
        check(&text, budget);
    }
    for wrong in ["0", "-0.1", "100.5", "nan"] {
        let text = format!("[admission]\n\n'cpu.pressure' = {{ some = 5, full = {wrong} }}");
        check(&text, "line 3: ");
        check(&text, "is no percentage: more than 0, 100 at most");
    }
    check(
        "[admission]\n'io.pressure' = { most = 1 }",
        "unknown field `most`, expected `some` or `full`",
    );
    check("[admission]\nqueue = 0", "line 2: 0 is not 1 or more");
    check(
        "[admission]\npressure_dir = 'here'",
        "line 2: here is no absolute path",
    );
    check(
        "[class.a]\noutbound = 'all'",
        "expected one of `none`, `nat`, `host`",
    );
}

#[test]
fn a_file_changes_what_it_says_of_a_class_and_leaves_the_rest() {
    let config = load("[class.build]\n'cpu.weight' = 50", &[]).unwrap();
    let build = &config.class[&ClassName::try_new("build").unwrap()];
    assert_eq!(
        (build.cpu_weight, build.root, build.pids_max),
        (50, Root::Disk, 4096)
    );
}

#[test]
fn a_budget_is_mib_or_a_share_of_the_machine() {
    let admission = |text: &str| {
        let config = load(&format!("[admission]\n{text}"), &[]).unwrap();
        // What is shown can be read again.
        let again = load(&config.masked(), &[]).unwrap();
        assert_eq!(again.admission, config.admission);
        config.admission
    };
    let bytes = |text: &str| {
        let budget = admission(&format!("'memory.budget' = {text}")).memory_budget;
        budget.unwrap().bytes(8 << 30)
    };
    assert_eq!(bytes("512"), 512 << 20);
    assert_eq!(bytes("'75%'"), 6 << 30);
    assert_eq!(bytes("'150 %'"), 12 << 30);
    assert_eq!(admission(""), Admission::default());
    let set = admission("'io.pressure' = { full = 20 }\n'cpu.pressure' = { some = 90.5 }");
    let lines = set
        .thresholds()
        .map(|(name, limits)| (name, limits.lines().collect::<Vec<_>>()));
    let expected = [
        ("cpu", vec![("some", 90.5)]),
        ("memory", vec![]),
        ("io", vec![("full", 20.0)]),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn drop_ins_are_read_in_order_and_name_themselves_when_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("opr.toml");
    let folder = dir.path().join("opr.toml.d");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(
        &file,
        "log = 'a'\n[class.a]\n'cpu.weight' = 1\nscratch_mib = 7",
    )
    .unwrap();
    std::fs::write(folder.join("20.toml"), "[class.a]\n'cpu.weight' = 20").unwrap();
    std::fs::write(folder.join("10.toml"), "[class.a]\n'cpu.weight' = 10").unwrap();
    std::fs::write(folder.join("30.toml.off"), "nonsense").unwrap();
    std::fs::write(folder.join(".40.toml"), "nonsense").unwrap();
    let load = || Config::load(Some(&file), &|_| None);
    let config = load().unwrap();
    let class = &config.class[&ClassName::try_new("a").unwrap()];
    assert_eq!(
        (class.cpu_weight, class.scratch_mib, &*config.log),
        (20, 7, "a")
    );
    std::fs::write(folder.join("30.toml"), "[class.a]\n\n'cpu.weight' = 20_000").unwrap();
    let told = format!("{:#}", anyhow::Error::new(load().unwrap_err()));
    assert!(
        told.contains("opr.toml.d/30.toml, line 3: 20000 is not from 1 to 10000"),
        "{told}"
    );
    std::fs::remove_file(folder.join("30.toml")).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(Config::exists(&file));
    let class = &load().unwrap().class[&ClassName::try_new("a").unwrap()];
    assert_eq!(class.cpu_weight, 20);
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(!Config::exists(&file));
    load().unwrap_err();
}

#[test]
fn secrets_are_not_printed() {
    let text = "[executor]\nsecret = 'hush'\n[storage]\ndsn = 's3://k:hush@h/b'\n\
                [registry.'r.example']\nuser = 'me'\npassword = 'hush'";
    let config = load(text, &[]).unwrap();
    for shown in [config.masked(), format!("{:?}", config.registry)] {
        assert!(shown.contains("me") && !shown.contains("hush"), "{shown}");
    }
}

#[test]
fn a_dsn_that_cannot_be_used_stops_the_start_without_its_secret() {
    let error = load("[storage]\ndsn = 's4://k:hush@h/b'", &[]).unwrap_err();
    let chain = format!("{:#}", anyhow::Error::new(error));
    assert!(
        chain.contains("line 2: there is no device \"s4\""),
        "{chain}"
    );
    assert!(!chain.contains("hush"));
}

#[test]
fn what_is_pulled_at_the_start_and_as_whom() {
    let pull = |vars: &[(&str, &str)]| load("", vars).unwrap().pull;
    let wanted = [(env::IMAGES, "a:1, b:2,"), (env::RUNTIMES, "node-22")];
    let all = Pull {
        images: vec!["a:1".into(), "b:2".into()],
        runtimes: vec!["node-22".into()],
    };
    assert_eq!(pull(&wanted), all);
    let disabled = [&wanted[..], &[(env::IMAGE_PULL, "disabled")]].concat();
    assert_eq!(pull(&disabled), Pull::default());
    let login = [
        (env::DOCKER_HUB_USERNAME, "me"),
        (env::DOCKER_HUB_PASSWORD, "hush"),
    ];
    let registry = load("", &login).unwrap().registry;
    assert_eq!(registry["docker.io"].user, "me");
}

#[test]
fn a_text_that_is_zero_is_unset_and_a_number_is_not() {
    let vars = [
        (env::SECRET, "0"),
        (env::RETRY_DELAY_MS, "0"),
        (env::NETWORK, "net"),
        (env::IMAGE, "0"),
    ];
    let config = load("", &vars).unwrap();
    assert_eq!(
        (
            config.executor.secret.as_str(),
            config.executor.retry_delay_ms
        ),
        ("", 0)
    );
    let var = |name: &str| {
        let found = vars.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    assert_eq!(env::without_effect(&var), [env::NETWORK]);
}
