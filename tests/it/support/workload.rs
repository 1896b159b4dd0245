//! Many sessions that write to one table at once, in every way a transaction can begin and end. Each row carries its
//! transaction's number, so that a server shows exactly which transactions it has.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};
use tokio_postgres::Client;

use super::Cluster;

/// Running until it is stopped.
#[derive(Debug)]
pub(crate) struct Workload {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<BTreeSet<u32>>>,
}

impl Workload {
    pub(crate) fn start(cluster: &Cluster, writers: u64, seed: u64) -> Self {
        Self::start_at(cluster.socket_conninfo(), |sql| drop(cluster.sql(sql)), writers, seed)
    }

    /// The same in a database of its own.
    pub(crate) fn start_in(cluster: &Cluster, database: &str, writers: u64, seed: u64) -> Self {
        let conninfo = cluster.socket_conninfo().replace("dbname=postgres", &format!("dbname={database}"));
        Self::start_at(conninfo, |sql| drop(cluster.sql_in(database, sql)), writers, seed)
    }

    fn start_at(conninfo: String, sql: impl FnOnce(&str), writers: u64, seed: u64) -> Self {
        sql("create table ledger (xid bigint default pg_current_xact_id()::text::bigint, rows int, filler text)");
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..writers)
            .map(|writer| {
                let (stop, conninfo) = (Arc::clone(&stop), conninfo.clone());
                std::thread::spawn(move || write(&stop, &conninfo, writer, seed.wrapping_add(writer)))
            })
            .collect();
        Self { stop, writers }
    }

    /// The numbers of all transactions that the server said it had committed.
    pub(crate) fn stop(self) -> BTreeSet<u32> {
        self.stop.store(true, Ordering::Relaxed);
        self.writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect()
    }
}

/// The transactions whose rows a server has, each of them whole.
pub(crate) fn transactions(cluster: &Cluster) -> BTreeSet<u32> {
    transactions_in(cluster, "postgres")
}

/// The same of another database.
pub(crate) fn transactions_in(cluster: &Cluster, database: &str) -> BTreeSet<u32> {
    let torn = cluster.sql_in(database, "select xid from ledger group by xid having count(*) <> min(rows)");
    assert_eq!(torn, "", "transactions of which a part is missing");
    cluster
        .sql_in(database, "select distinct xid from ledger")
        .lines()
        .map(|xid| xid.parse().expect("an xid"))
        .collect()
}

fn write(stop: &AtomicBool, conninfo: &str, writer: u64, seed: u64) -> BTreeSet<u32> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(conninfo, tokio_postgres::NoTls).await.expect("connect");
        tokio::spawn(connection);
        let mut random = SmallRng::seed_from_u64(seed);
        let mut committed = BTreeSet::new();
        let mut turn = 0;
        while !stop.load(Ordering::Relaxed) {
            turn += 1;
            committed.extend(transaction(&client, &mut random, &format!("w{writer}-{turn}")).await);
            // Not faster than a restore can be checked.
            tokio::time::sleep(Duration::from_micros(random.random_range(0..2000))).await;
        }
        committed
    })
}

/// One transaction; its number if it was committed.
async fn transaction(client: &Client, random: &mut SmallRng, name: &str) -> Option<u32> {
    let run =
        async |statement: &str| client.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    let rows = random.random_range(1..=3);
    let filler = random.random_range(0..400);
    let insert =
        format!("insert into ledger (rows, filler) select {rows}, repeat('x', {filler}) from generate_series(1, ");
    let kind = random.random_range(0..100);
    run("begin").await;
    let xid = client
        .query_one("select pg_current_xact_id()::text", &[])
        .await
        .expect("a transaction's number")
        .get::<_, String>(0);
    if kind < 15 {
        // One row in the transaction itself, the others in a subtransaction; and one in another that is undone.
        run(&format!(
            "{insert}1); savepoint s; {insert}{}); release s; savepoint s; {insert}5); rollback to s",
            rows - 1
        ))
        .await;
    } else {
        run(&format!("{insert}{rows})")).await;
    }
    if kind < 30 {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..8))).await;
    }
    match kind {
        30..45 => {
            run("rollback").await;
            return None;
        }
        45..55 => {
            run(&format!("prepare transaction '{name}'")).await;
            let commit = random.random_bool(0.6);
            run(&format!("{} prepared '{name}'", if commit { "commit" } else { "rollback" })).await;
            if !commit {
                return None;
            }
        }
        _ => run("commit").await,
    }
    Some(xid.parse().expect("an xid of the first epoch"))
}
