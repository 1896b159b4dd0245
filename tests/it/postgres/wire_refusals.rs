//! What a server refuses, read from real servers of every major, in German where they have it: no decision may depend
//! on the words.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use walkeep::base::retry::ErrorClass;
use walkeep::postgres::format::lsn::Lsn;
use walkeep::postgres::format::timeline::TimelineId;
use walkeep::postgres::sql::SqlSession;
use walkeep::postgres::wire::{
    BaseBackupOptions, Conninfo, LibpqEnvironment, ReplicationConnection, ReplicationError, SlotName,
    StartedReplication,
};

use crate::support::cluster::{german_locale, has_german};
use crate::support::{Cluster, Options, QUICK, Scratch, majors};

fn info(text: &str) -> Conninfo {
    Conninfo::parse(text, &LibpqEnvironment::new()).unwrap()
}

async fn connect(cluster: &Cluster) -> ReplicationConnection {
    ReplicationConnection::connect(&info(&cluster.conninfo())).await.unwrap()
}

fn slot(name: &str) -> SlotName {
    SlotName::new(name).unwrap()
}

/// The fields by which an error is told from others.
fn fields(error: &ReplicationError) -> (&str, &str) {
    let ReplicationError::Server { error, .. } = error else { panic!("not the server's: {error}") };
    (&error.code, &error.routine)
}

/// The first error of a stream.
async fn stream_error(cluster: &Cluster, slot: Option<&SlotName>, start: Lsn) -> ReplicationError {
    let started = connect(cluster).await.start_physical(slot, start, TimelineId::FIRST).await;
    let mut stream = match started {
        Ok(StartedReplication::Streaming(stream)) => stream,
        Ok(StartedReplication::TimelineEnded(..)) => panic!("the timeline ends"),
        Err(error) => return error,
    };
    loop {
        if let Err(error) = stream.next().await {
            return error;
        }
    }
}

fn options(scratch: &Scratch) -> Options {
    let options = Options::default().segment_size_mb(1).set("min_wal_size", "2MB");
    match german_locale(scratch) {
        Some(locales) => options.german(locales),
        None => options,
    }
}

/// Writes WAL until the segment with `start` is gone.
fn lose_segment(cluster: &Cluster, start: Lsn) {
    let name = cluster.sql(&format!("select pg_walfile_name('{}')", Lsn::new((start.get() & !0xF_FFFF) + 1)));
    cluster.sql("create table lost as select generate_series(1, 100000) as x");
    for _ in 0..50 {
        cluster.switch_wal();
        cluster.sql("checkpoint");
        if !cluster.pg_wal().join(&name).exists() {
            return;
        }
    }
    panic!("{name} is still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_slots_are_refused_by_code_and_routine() {
    for major in majors() {
        let scratch = Scratch::new();
        let cluster = Cluster::start(major, options(&scratch).set("max_replication_slots", 2));
        let acquire = if major == 13 { "ReplicationSlotAcquireInternal" } else { "ReplicationSlotAcquire" };
        let mut connection = connect(&cluster).await;
        let begin = connection.identify_system().await.unwrap().flushed;
        let begin = Lsn::new(begin.get() & !0xF_FFFF);

        let error = connection.drop_slot(&slot("none")).await.unwrap_err();
        assert!(error.is_no_slot() && fields(&error) == ("42704", acquire), "{major}: {error:?}");
        let error = stream_error(&cluster, Some(&slot("none")), begin).await;
        assert!(error.is_no_slot(), "{major}: {error:?}");
        connection.create_physical_slot(&slot("a"), true).await.unwrap();
        let error = connection.create_physical_slot(&slot("a"), true).await.unwrap_err();
        assert!(error.is_duplicate() && fields(&error) == ("42710", "ReplicationSlotCreate"), "{major}: {error:?}");
        if has_german(major) && cluster.sql("show lc_messages") == "de_DE.UTF-8" {
            assert!(error.to_string().contains("existiert bereits"), "it is not translated: {error}");
        }
        connection.create_physical_slot(&slot("b"), false).await.unwrap();
        let error = connection.create_physical_slot(&slot("c"), false).await.unwrap_err();
        assert_eq!(fields(&error), ("53400", "ReplicationSlotCreate"), "{major}");
        assert!(error.to_string().contains("raise max_replication_slots"), "{error}");
        let error = connection.timeline_history(TimelineId::new(9).unwrap()).await.unwrap_err();
        assert!(error.is_no_history() && fields(&error) == ("58P01", "SendTimeLineHistory"), "{major}: {error:?}");
        // Not a slot, and the same SQLSTATE as an absent one.
        let error = connection.show("no_such_setting").await.unwrap_err();
        assert!(!error.is_no_slot() && fields(&error).0 == "42704", "{major}: {error:?}");

        let holder = connect(&cluster).await.start_physical(Some(&slot("a")), begin, TimelineId::FIRST).await.unwrap();
        let error = stream_error(&cluster, Some(&slot("a")), begin).await;
        assert_eq!(fields(&error), ("55006", acquire), "{major}");
        assert!(error.to_string().contains("another receiver uses the slot"), "{error}");
        drop(holder);

        let other = connection.start_physical(None, begin, TimelineId::new(7).unwrap()).await.unwrap_err();
        assert!(other.is_other_history() && fields(&other) == ("XX000", "tliSwitchPoint"), "{major}: {other:?}");
        let far = begin.checked_add(1 << 30).unwrap();
        let ahead = stream_error(&cluster, None, far).await;
        assert!(ahead.is_ahead_of_server() && !ahead.is_other_history(), "{major}: {ahead:?}");
        assert_eq!(fields(&ahead), ("XX000", "StartReplication"), "{major}");

        cluster.set("max_slot_wal_keep_size", "1MB");
        lose_segment(&cluster, begin);
        let removed = stream_error(&cluster, None, begin).await;
        assert!(removed.is_wal_removed() && removed.class() == ErrorClass::Permanent, "{major}: {removed:?}");
        assert_eq!(fields(&removed), ("58P01", "WalSndSegmentOpen"), "{major}");
        // Only 18 refuses to stream from an invalidated slot. The others fail because of the WAL.
        cluster.wait_for("select wal_status = 'lost' from pg_replication_slots where slot_name = 'a'");
        let lost = stream_error(&cluster, Some(&slot("a")), begin).await;
        assert_eq!((lost.is_slot_lost(), lost.is_wal_removed()), (major >= 18, major < 18), "{major}: {lost:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn advice_depends_on_the_code_and_the_routine() {
    for major in majors() {
        let scratch = Scratch::new();
        let options = options(&scratch).set("max_wal_senders", 2).set("max_connections", 8);
        let cluster = Cluster::start(major, options);
        cluster
            .sql("create role plain login; create role kept_out; create role one login replication connection limit 0");
        let as_role = |role: &str| {
            info(&format!("host=127.0.0.1 port={} user={role} dbname=postgres sslmode=disable", cluster.port))
        };

        let error = ReplicationConnection::connect(&as_role("plain")).await.unwrap_err();
        assert_eq!(fields(&error), ("42501", "InitPostgres"), "{major}");
        assert!(error.to_string().contains("ALTER ROLE plain REPLICATION"), "{error}");
        for role in ["nobody_here", "kept_out"] {
            let error = ReplicationConnection::connect(&as_role(role)).await.unwrap_err();
            assert_eq!(fields(&error), ("28000", "InitializeSessionUserId"), "{major}");
            assert!(error.to_string().contains(&format!("CREATE ROLE {role} LOGIN REPLICATION")), "{error}");
        }
        // Before 14 the role's limit counts for replication, and after that for SQL alone.
        let error = SqlSession::connect(&as_role("one")).await.unwrap_err().to_string();
        assert!(error.contains("CONNECTION LIMIT") && !error.contains("max_"), "{error}");

        // A file that the server may not read is no lack of a privilege.
        let unreadable = cluster.data().join("base/unreadable");
        fs::write(&unreadable, "x").unwrap();
        fs::set_permissions(&unreadable, fs::Permissions::from_mode(0o600)).unwrap();
        let error = backup_error(&cluster).await;
        fs::remove_file(&unreadable).unwrap();
        assert_eq!(fields(&error), ("42501", "sendFile"), "{major}");
        let text = error.to_string();
        assert!(text.contains("a file of its own data directory") && !text.contains("REPLICATION"), "{text}");

        let as_superuser = info(&format!("{} sslmode=disable", cluster.conninfo()));
        // The process that sent the backup may take a moment to end.
        let mut held = Vec::new();
        while held.len() < 2 {
            held.extend(ReplicationConnection::connect(&as_superuser).await.ok());
        }
        let error = ReplicationConnection::connect(&as_superuser).await.unwrap_err();
        assert_eq!(fields(&error), ("53300", "InitProcess"), "{major}");
        assert!(error.to_string().contains("raise max_wal_senders"), "{error}");
        drop(held);
        let mut sessions = Vec::new();
        let error = loop {
            match SqlSession::connect(&as_superuser).await {
                Ok(session) => sessions.push(session),
                Err(error) => break error.to_string(),
            }
            assert!(sessions.len() < 50, "there is no limit");
        };
        assert!(error.contains("raise max_connections") && !error.contains("max_wal_senders"), "{error}");
        drop(sessions);

        fs::write(cluster.data().join("pg_hba.conf"), "local all all trust\nhost nowhere all 127.0.0.1/32 trust\n")
            .unwrap();
        cluster.sql("select pg_reload_conf()");
        let error = loop {
            match ReplicationConnection::connect(&as_superuser).await {
                Err(error) => break error,
                Ok(connection) => connection.close().await,
            }
        };
        assert_eq!(fields(&error), ("28000", "ClientAuthentication"), "{major}");
        let line = "add to pg_hba.conf and reload the server: host replication postgres 127.0.0.1/32 scram-sha-256";
        assert!(error.to_string().contains(line), "{error}");
        let error = SqlSession::connect(&as_superuser).await.unwrap_err().to_string();
        assert!(error.contains("host postgres postgres 127.0.0.1/32 scram-sha-256"), "{error}");
    }
}

/// How a base backup fails.
async fn backup_error(cluster: &Cluster) -> ReplicationError {
    let options = BaseBackupOptions {
        label: "a test".into(),
        fast_checkpoint: true,
        max_rate_kib: None,
        manifest: false,
        server_verifies: false,
        wait_for_archive: false,
        compression: None,
    };
    let mut backup = connect(cluster).await.base_backup(&options).await.unwrap();
    loop {
        if let Err(error) = backup.next().await {
            return error;
        }
    }
}

/// A server that is restarted, or a router, ends a connection in the middle of the handshake: it may be back in a
/// moment. A server that speaks no TLS will not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls_handshake_that_is_cut_may_be_tried_again() {
    for (answer, class) in [(None, ErrorClass::Transient), (Some(b"this is not TLS"), ErrorClass::Permanent)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut request = [0; 8];
                client.read_exact(&mut request).await.unwrap();
                client.write_all(b"S").await.unwrap();
                let mut hello = [0; 1024];
                let _length = client.read(&mut hello).await.unwrap();
                if let Some(answer) = answer {
                    client.write_all(answer).await.unwrap();
                }
            }
        });
        let info = info(&format!("host=127.0.0.1 port={port} user=x sslmode=require password=x"));
        let error = ReplicationConnection::connect(&info).await.unwrap_err();
        assert_eq!(error.class(), class, "{error}: {error:?}");
        let error = SqlSession::connect(&info).await.unwrap_err();
        assert_eq!(error.class(), class, "{error}: {error:?}");
    }
    let plain = Cluster::start(QUICK, Options::default());
    let error = ReplicationConnection::connect(&info(&format!("{} sslmode=require", plain.conninfo()))).await;
    assert_eq!(error.unwrap_err().class(), ErrorClass::Permanent);
}
