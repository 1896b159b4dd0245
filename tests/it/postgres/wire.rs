//! The replication client against real servers: every command on every major, every way to log in, and WAL that is byte
//! for byte what the server has in `pg_wal`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use walkeep::base::retry::ErrorClass;
use walkeep::postgres::format::lsn::Lsn;
use walkeep::postgres::format::time::PgTime;
use walkeep::postgres::format::timeline::TimelineId;
use walkeep::postgres::sql::SqlSession;
use walkeep::postgres::wire::{
    BaseBackupEvent, BaseBackupOptions, Conninfo, LibpqEnvironment, NextTimeline, PhysicalStream,
    ReplicationConnection, ReplicationError, ServerCompression, SlotName, StandbyStatus, StartedReplication,
    WalStreamEvent,
};

use crate::support::process::{self, Orphan};
use crate::support::{Cluster, Options, QUICK, Scratch, majors};

fn info(text: &str) -> Conninfo {
    Conninfo::parse(text, &LibpqEnvironment::new()).unwrap()
}

async fn connect(cluster: &Cluster) -> ReplicationConnection {
    ReplicationConnection::connect(&info(&cluster.conninfo())).await.unwrap()
}

async fn stream(
    connection: ReplicationConnection,
    slot: Option<&SlotName>,
    start: Lsn,
    timeline: TimelineId,
) -> PhysicalStream {
    match connection.start_physical(slot, start, timeline).await.unwrap() {
        StartedReplication::Streaming(stream) => stream,
        StartedReplication::TimelineEnded(..) => panic!("the timeline ends at its start"),
    }
}

/// Bytes from the stream until `until`, checked to be contiguous.
async fn receive(stream: &mut PhysicalStream, start: Lsn, until: Lsn) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let next = start.checked_add(bytes.len() as u64).unwrap();
        if next >= until {
            return bytes;
        }
        match stream.next().await.unwrap() {
            WalStreamEvent::Wal(wal) => {
                assert_eq!(wal.start, next, "a gap or an overlap");
                assert!(wal.server_end >= next);
                bytes.extend_from_slice(&wal.bytes);
            }
            WalStreamEvent::Keepalive(_) => {}
            WalStreamEvent::EndOfTimeline => panic!("the timeline ended at {next}"),
        }
    }
}

#[tokio::test]
async fn every_command_on_every_major() {
    for major in majors() {
        let cluster = Cluster::start(major, Options::default().segment_size_mb(1));
        let mut connection = connect(&cluster).await;
        assert_eq!(connection.version().0, major);
        let identity = connection.identify_system().await.unwrap();
        assert_eq!(identity.system_id.get(), cluster.system_identifier());
        assert_eq!(connection.segment_size().await.unwrap().get(), 1 << 20);
        assert_eq!(connection.show("max_wal_senders").await.unwrap(), cluster.sql("show max_wal_senders"));
        let unknown = connection.show("no_such_setting").await.unwrap_err();
        assert!(unknown.to_string().contains("no_such_setting"), "{unknown}");

        let slot = SlotName::new("walkeep").unwrap();
        connection.create_physical_slot(&slot, true).await.unwrap();
        assert!(connection.create_physical_slot(&slot, true).await.unwrap_err().is_duplicate());
        let restart: Lsn = cluster.sql("select restart_lsn from pg_replication_slots").parse().unwrap();
        if connection.version().can_read_slots() {
            let read = connection.read_replication_slot(&slot).await.unwrap().unwrap();
            assert_eq!((read.restart, read.timeline), (Some(restart), Some(TimelineId::FIRST)));
            let none = connection.read_replication_slot(&SlotName::new("none").unwrap()).await.unwrap();
            assert_eq!(none, None);
        }

        cluster.sql("create table t as select generate_series(1, 40000) as x");
        cluster.switch_wal();
        let segment = restart.get() & !0xF_FFFF;
        let end: Lsn = cluster.sql("select pg_current_wal_flush_lsn()").parse().unwrap();
        let whole = Lsn::new(end.get() & !0xF_FFFF);
        let mut wal = stream(connection, Some(&slot), Lsn::new(segment), TimelineId::FIRST).await;
        let bytes = receive(&mut wal, Lsn::new(segment), whole).await;
        assert!(bytes.len() >= 3 << 20, "only {} bytes", bytes.len());
        for (i, piece) in bytes.chunks_exact(1 << 20).enumerate() {
            let number = (segment >> 20) + i as u64;
            let name = format!("00000001{:08X}{:08X}", number >> 12, number & 0xFFF);
            assert!(piece == fs::read(cluster.pg_wal().join(&name)).unwrap(), "{name} differs on {major}");
        }

        let status = StandbyStatus { written: whole, flushed: Lsn::new(segment), reply_wanted: false };
        wal.send_status(status, PgTime::from_pg_micros(0)).await.unwrap();
        let expected = format!("{}|{}|", status.written, status.flushed);
        cluster.wait_for(&format!(
            "select concat(write_lsn, '|', flush_lsn, '|', replay_lsn) = '{expected}' from pg_stat_replication"
        ));
        let (mut connection, next) = wal.finish().await.unwrap();
        assert_eq!(next, None, "the timeline goes on");
        connection.drop_slot(&slot).await.unwrap();
        assert!(connection.drop_slot(&slot).await.unwrap_err().is_no_slot());
        connection.close().await;
    }
}

#[tokio::test]
async fn a_timeline_ends_where_its_child_begins() {
    for major in majors() {
        let primary = Cluster::start(major, Options::default().segment_size_mb(1));
        let standby = primary.standby(Options::default());
        standby.wait_for("select pg_is_in_recovery()");
        let mut connection = connect(&standby).await;
        let start = Lsn::new(connection.identify_system().await.unwrap().flushed.get() & !0xF_FFFF);
        let mut wal = stream(connection, None, start, TimelineId::FIRST).await;
        primary.sql("create table t as select 1");
        standby.promote();
        let mut received = start;
        loop {
            match wal.next().await.unwrap() {
                WalStreamEvent::Wal(wal) => received = wal.start.checked_add(wal.bytes.len() as u64).unwrap(),
                WalStreamEvent::Keepalive(_) => {}
                WalStreamEvent::EndOfTimeline => break,
            }
        }
        let (mut connection, next) = wal.finish().await.unwrap();
        let second = TimelineId::new(2).unwrap();
        assert_eq!(next, Some(NextTimeline { timeline: second, start: received }));
        let (name, content) = connection.timeline_history(second).await.unwrap();
        assert_eq!(name, "00000002.history");
        assert_eq!(content, fs::read(standby.pg_wal().join(&name)).unwrap());
        match connection.start_physical(None, received, TimelineId::FIRST).await.unwrap() {
            StartedReplication::TimelineEnded(_, again) => assert_eq!(Some(again), next),
            StartedReplication::Streaming(_) => panic!("there is nothing after the end of a timeline"),
        }
        let beyond = ReplicationConnection::connect(&info(&standby.conninfo())).await.unwrap();
        let far = received.checked_add(1 << 30).unwrap();
        let error = stream(beyond, None, far, second).await.next().await.unwrap_err();
        assert!(error.is_ahead_of_server(), "{error}");
        let other = ReplicationConnection::connect(&info(&standby.conninfo())).await.unwrap();
        let error = other.start_physical(None, far, TimelineId::FIRST).await.unwrap_err();
        assert!(error.is_other_history(), "{error}");
    }
}

#[tokio::test]
async fn wal_that_is_gone_is_gone() {
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1).set("min_wal_size", "2MB"));
    let start = connect(&cluster).await.identify_system().await.unwrap().flushed;
    cluster.sql("create table t as select generate_series(1, 100000) as x");
    cluster.sql("checkpoint");
    for _ in 0..4 {
        cluster.switch_wal();
    }
    cluster.sql("checkpoint");
    let mut wal = stream(connect(&cluster).await, None, Lsn::new(start.get() & !0xF_FFFF), TimelineId::FIRST).await;
    let error = loop {
        match wal.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(error.is_wal_removed() && error.class() == ErrorClass::Permanent, "{error}");
}

/// Logs in for replication and for SQL alike and gives both outcomes, which must agree.
async fn both(conninfo: &str, environment: &LibpqEnvironment) -> Result<(), String> {
    let info = Conninfo::parse(conninfo, environment).unwrap();
    let replication = match ReplicationConnection::connect(&info).await {
        Ok(mut connection) => connection.identify_system().await.map(drop).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let sql = SqlSession::connect(&info).await;
    assert_eq!(replication.is_ok(), sql.is_ok(), "{conninfo}: {replication:?} {sql:?}");
    if let Ok(sql) = sql {
        assert!(!sql.in_recovery().await.unwrap());
    }
    replication
}

#[tokio::test]
async fn passwords_by_every_method_and_from_every_place() {
    for options in [Options::default().scram("a secret:\\"), Options::default().md5("a secret:\\")] {
        let cluster = Cluster::start(QUICK, options);
        let none = LibpqEnvironment::new();
        let base = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", cluster.port);
        both(&format!("{base} password='a secret:\\\\'"), &none).await.unwrap();
        both(&cluster.socket_conninfo(), &none).await.unwrap();

        let wrong = both(&format!("{base} password=guess"), &none).await.unwrap_err();
        assert!(wrong.contains("password authentication failed") && wrong.contains("the connection string"), "{wrong}");
        assert!(!wrong.contains("guess"), "{wrong}");
        let missing = both(&base, &none).await.unwrap_err();
        assert!(missing.contains("asks for a password"), "{missing}");

        let variables: LibpqEnvironment = [("PGPASSWORD".to_owned(), "a secret:\\".to_owned())].into();
        both(&base, &variables).await.unwrap();

        let scratch = Scratch::new();
        let pgpass = scratch.join(".pgpass");
        fs::write(&pgpass, "127.0.0.1:*:replication:*:a secret\\:\\\\\n127.0.0.1:*:postgres:*:a secret\\:\\\\\n")
            .unwrap();
        fs::set_permissions(&pgpass, fs::Permissions::from_mode(0o600)).unwrap();
        let home: LibpqEnvironment = [("HOME".to_owned(), scratch.path().to_str().unwrap().to_owned())].into();
        both(&base, &home).await.unwrap();
        fs::set_permissions(&pgpass, fs::Permissions::from_mode(0o644)).unwrap();
        let open = both(&base, &home).await.unwrap_err();
        assert!(open.contains("chmod 0600"), "{open}");
    }
}

#[tokio::test]
async fn weaker_ways_are_refused_when_told_so() {
    let none = LibpqEnvironment::new();
    let md5 = Cluster::start(QUICK, Options::default().md5("x"));
    let error = both_fail(&md5, "require_auth=scram-sha-256").await;
    assert!(error.contains("require_auth"), "{error}");
    let trust = Cluster::start(QUICK, Options::default());
    let error = both_fail(&trust, "require_auth=!none").await;
    assert!(error.contains("require_auth"), "{error}");
    let scram = Cluster::start(QUICK, Options::default().scram("x"));
    both(&format!("{} channel_binding=prefer", scram.conninfo()), &none).await.unwrap();
    let error = both_fail(&scram, "channel_binding=require").await;
    assert!(error.contains("channel_binding=require"), "{error}");
}

async fn both_fail(cluster: &Cluster, more: &str) -> String {
    let info = info(&format!("{} {more}", cluster.conninfo()));
    ReplicationConnection::connect(&info).await.unwrap_err().to_string()
}

/// A certificate authority, a certificate it signed for `name` with these extensions, and an authority that is a
/// stranger.
fn make_certificates(cluster: &Cluster, scratch: &Scratch, name: &str, extensions: &str) {
    let openssl = |arguments: &[&str]| {
        let mut command = process::command("openssl", Orphan::Kill);
        command.current_dir(scratch.path()).args(arguments);
        process::run(command).expect_ok();
    };
    let ca = |file: &str| {
        let (key, crt, name) = (format!("{file}.key"), format!("{file}.crt"), format!("/CN={file}"));
        openssl(&[
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", &name, "-keyout", &key, "-out",
            &crt,
        ]);
    };
    ca("root");
    ca("stranger");
    let subject = format!("/CN={name}");
    openssl(&[
        "req",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        &subject,
        "-keyout",
        "server.key",
        "-out",
        "server.csr",
    ]);
    scratch.file("server.ext", extensions);
    openssl(&[
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "root.crt",
        "-CAkey",
        "root.key",
        "-CAcreateserial",
        "-days",
        "30",
        "-extfile",
        "server.ext",
        "-out",
        "server.crt",
        "-sha384",
    ]);
    for file in ["server.key", "server.crt"] {
        let target = cluster.data().join(file);
        fs::copy(scratch.join(file), &target).unwrap();
        crate::support::scratch::give(&target);
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
    }
    cluster.sql("select pg_reload_conf()");
}

#[tokio::test]
async fn sslmode_means_what_libpq_says() {
    let none = LibpqEnvironment::new();
    for major in majors().into_iter().filter(|major| *major > 13) {
        let cluster = Cluster::start(major, Options::default().scram("x").tls());
        let scratch = Scratch::new();
        let base = cluster.conninfo();
        let own = cluster.root_certificate();
        let own = own.display();
        for mode in ["disable", "allow", "prefer", "require"] {
            both(&format!("{base} sslmode={mode}"), &none).await.unwrap();
        }
        both(&format!("{base} sslmode=require channel_binding=require"), &none).await.unwrap();
        both(&format!("{base} sslmode=verify-full sslrootcert={own} channel_binding=require"), &none).await.unwrap();
        let missing = both(&format!("{base} sslmode=verify-ca"), &none).await.unwrap_err();
        assert!(missing.contains("sslrootcert"), "{missing}");

        make_certificates(&cluster, &scratch, "db.example.org", "basicConstraints=CA:FALSE\n");
        let root = scratch.join("root.crt");
        let root = root.display();
        let stranger = scratch.join("stranger.crt");
        let stranger = stranger.display();
        both(&format!("{base} sslmode=verify-ca sslrootcert={root} channel_binding=require"), &none).await.unwrap();
        let error = both(&format!("{base} sslmode=verify-ca sslrootcert={stranger}"), &none).await.unwrap_err();
        assert!(error.contains("sslrootcert"), "{error}");
        let error = both(&format!("{base} sslmode=require sslrootcert={stranger}"), &none).await.unwrap_err();
        assert!(error.contains("sslrootcert"), "a root file makes require check: {error}");
        let error = both(&format!("{base} sslmode=verify-full sslrootcert={root}"), &none).await.unwrap_err();
        assert!(error.contains("another name"), "{error}");
        // The name to check and the address to go to may differ, and a certificate without alternative names goes by
        // its common name.
        let named = base.replace("host=127.0.0.1", "host=db.example.org hostaddr=127.0.0.1");
        both(&format!("{named} sslmode=verify-full sslrootcert={root}"), &none).await.unwrap();
        if major >= 17 {
            both(&format!("{named} sslmode=verify-full sslrootcert={root} sslnegotiation=direct"), &none)
                .await
                .unwrap();
        }
        cluster.sql("alter system set ssl = off; ");
        cluster.sql("select pg_reload_conf()");
        cluster.wait_for("select current_setting('ssl') = 'off'");
        let error = both(&format!("{base} sslmode=require"), &none).await.unwrap_err();
        assert!(error.contains("TLS"), "{error}");
        both(&format!("{base} sslmode=prefer"), &none).await.unwrap();
    }
}

#[tokio::test]
async fn a_refusal_says_what_to_do() {
    let cluster = Cluster::start(QUICK, Options::default());
    cluster.sql("create role plain login");
    let base = format!("host=127.0.0.1 port={} dbname=postgres", cluster.port);
    let error = ReplicationConnection::connect(&info(&format!("{base} user=plain"))).await.unwrap_err();
    assert!(error.to_string().contains("ALTER ROLE plain REPLICATION"), "{error}");
    assert_eq!(error.class(), ErrorClass::Permanent);
    let error = ReplicationConnection::connect(&info(&format!("{base} user=nobody_here"))).await.unwrap_err();
    assert!(error.to_string().contains("CREATE ROLE nobody_here"), "{error}");
    fs::write(cluster.data().join("pg_hba.conf"), "local all all trust\nhost all all 127.0.0.1/32 trust\n").unwrap();
    cluster.sql("select pg_reload_conf()");
    let advice = "host replication postgres 127.0.0.1/32 scram-sha-256";
    let error = loop {
        match ReplicationConnection::connect(&info(&format!("{base} user=postgres"))).await {
            Err(error) => break error,
            Ok(connection) => connection.close().await,
        }
    };
    assert!(error.to_string().contains(advice), "{error}");
    let error = ReplicationConnection::connect(&info("host=127.0.0.1 port=1 user=x")).await.unwrap_err();
    assert!(matches!(error, ReplicationError::Connect { .. }) && error.class() == ErrorClass::Transient, "{error}");
}

#[tokio::test]
async fn the_wanted_server_of_several_is_found() {
    for major in [13, QUICK] {
        let primary = Cluster::start(major, Options::default());
        let standby = primary.standby(Options::default());
        let list = |wanted: &str| {
            let ports = format!("1,{},{}", standby.port, primary.port);
            info(&format!(
                "host=127.0.0.1,127.0.0.1,127.0.0.1 port={ports} user=postgres dbname=postgres \
                    target_session_attrs={wanted}"
            ))
        };
        for (wanted, port) in [
            ("any", standby.port),
            ("primary", primary.port),
            ("read-write", primary.port),
            ("standby", standby.port),
            ("read-only", standby.port),
            ("prefer-standby", standby.port),
        ] {
            let connection = ReplicationConnection::connect(&list(wanted)).await.unwrap();
            assert!(connection.peer().ends_with(&format!(":{port}")), "{wanted}: {}", connection.peer());
            let sql = SqlSession::connect(&list(wanted)).await.unwrap();
            assert_eq!(sql.in_recovery().await.unwrap(), port == standby.port, "{wanted}");
        }
        let alone = format!("{} target_session_attrs=standby", primary.conninfo());
        let error = ReplicationConnection::connect(&info(&alone)).await.unwrap_err();
        assert!(matches!(error, ReplicationError::WrongSession { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_base_backup_is_what_the_server_promised() {
    for major in majors() {
        let cluster = Cluster::start(major, Options::default());
        let place = Scratch::new();
        let space = place.directory("space");
        cluster.sql(&format!("create tablespace s location '{}'", space.display()));
        cluster.sql("create table t tablespace s as select generate_series(1, 1000) as x");
        let oid: u32 = cluster.sql("select oid from pg_tablespace where spcname = 's'").parse().unwrap();
        for compression in [None, Some(ServerCompression::Lz4), Some(ServerCompression::Zstd(-5))] {
            let options = BaseBackupOptions {
                label: "it's a test".into(),
                fast_checkpoint: true,
                max_rate_kib: None,
                manifest: true,
                server_verifies: true,
                wait_for_archive: false,
                compression,
            };
            let mut backup = connect(&cluster).await.base_backup(&options).await.unwrap();
            let start = backup.start().clone();
            let announced: Vec<Option<u32>> = start.tablespaces.iter().map(|space| space.oid).collect();
            assert!(announced.contains(&None) && announced.contains(&Some(oid)), "{announced:?}");
            let mut parts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            let mut current = String::new();
            let end = loop {
                match backup.next().await.unwrap() {
                    BaseBackupEvent::Archive(oid) => current = oid.map_or("base".into(), |oid| oid.to_string()),
                    BaseBackupEvent::Manifest => current = "manifest".into(),
                    BaseBackupEvent::Data(bytes) => parts.entry(current.clone()).or_default().extend_from_slice(&bytes),
                    BaseBackupEvent::Progress(_) => {}
                    BaseBackupEvent::End(end) => break end,
                }
            };
            backup.finish().await.unwrap().close().await;
            assert!(end.stop >= start.start && end.timeline == start.timeline);

            // The server's own tool, with the server's own manifest, says whether every byte has come.
            let scratch = Scratch::new();
            let target = scratch.directory("backup");
            tar::Archive::new(parts["base"].as_slice()).unpack(&target).unwrap();
            let link = target.join(format!("pg_tblspc/{oid}"));
            fs::remove_file(&link).ok();
            tar::Archive::new(parts[&oid.to_string()].as_slice()).unpack(&link).unwrap();
            fs::write(target.join("backup_manifest"), &parts["manifest"]).unwrap();
            give_all(scratch.path());
            cluster.run("pg_verifybackup", &["-n", &target.to_string_lossy()]).expect_ok();
            let label = fs::read_to_string(target.join("backup_label")).unwrap();
            assert!(label.contains("LABEL: it's a test") && label.contains(&start.start.to_string()), "{label}");
        }
    }
}

fn give_all(path: &Path) {
    crate::support::scratch::give(path);
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            give_all(&entry.unwrap().path());
        }
    }
}
