use super::*;

fn facts(id: &str) -> Facts {
    Facts {
        id: InstanceId::try_new(id).unwrap(),
        function: FunctionName::try_new("hello").ok(),
        class: ClassName::try_new("runtime").unwrap(),
        image: "docker.io/openruntimes/node:v5-22".into(),
        protocol: Protocol::V5,
        hostname: random_hex(),
        key: random_hex(),
        created: SystemTime::now(),
        restart: RestartPolicy::UnlessStopped,
        keep_alive: Some(Duration::from_secs(7)),
        memory_bytes: 256_000_000,
    }
}

fn instance(id: &str) -> Instance {
    let sandbox = SandboxId::try_new(format!("{id}-1")).unwrap();
    Instance::new(facts(id), sandbox, 1)
}

#[test]
fn c100_to_c103_an_instance_is_found_by_its_name_until_it_is_removed() {
    let pool = Pool::default();
    let id = |name: &str| InstanceId::try_new(name).unwrap();
    assert!(pool.get(&id("a")).is_none());
    let (a, b) = (
        pool.add(instance("a")).unwrap(),
        pool.add(instance("b")).unwrap(),
    );
    let found = pool.get(&id("a")).unwrap();
    assert_eq!(found.facts, a.facts);
    assert_eq!(found.info().key, a.facts.key);
    let mut all: Vec<_> = pool.all().iter().map(|one| one.facts.id.clone()).collect();
    all.sort();
    assert_eq!(all, [id("a"), id("b")]);

    pool.remove(&a);
    assert!(pool.get(&id("a")).is_none());
    // What comes late for one does not remove the next of its name.
    let next = pool.add(instance("a")).unwrap();
    pool.remove(&a);
    assert!(Arc::ptr_eq(&pool.get(&id("a")).unwrap(), &next));
    assert!(Arc::ptr_eq(&pool.get(&id("b")).unwrap(), &b));
}

#[test]
fn c104_what_is_kept_with_a_container_is_what_was_known() {
    let facts = facts("a");
    assert_eq!(Facts::from_labels(&facts.labels()), Some(facts));
    assert_eq!(Facts::from_labels(&BTreeMap::new()), None);
    let broken = BTreeMap::from([(LABEL.to_owned(), "{}".to_owned())]);
    assert_eq!(Facts::from_labels(&broken), None);
}
