//! `opr ps`: the instances.

use super::{Session, client::Client, output::table};
use crate::api::node::wire::InstanceEntry;

pub(super) async fn run(session: &Session) -> anyhow::Result<()> {
    let client = Client::new(&session.config);
    let instances: Vec<InstanceEntry> = client.get("/v1/instances").await?;
    session.output.result(&instances, |instances| {
        let rows: Vec<_> = instances.iter().map(row).collect();
        let titles = [
            "INSTANCE",
            "FUNCTION",
            "CLASS",
            "STATE",
            "EXECUTIONS",
            "IMAGE",
            "CREATED",
        ];
        table(titles, &rows)
    });
    Ok(())
}

fn row(instance: &InstanceEntry) -> [String; 7] {
    let function = instance.function.as_ref();
    [
        instance.id.clone(),
        function.map_or_else(|| "-".to_owned(), ToString::to_string),
        instance.class.to_string(),
        instance.state.clone(),
        instance.n_executions.to_string(),
        instance.image.clone(),
        instance.created.clone(),
    ]
}
