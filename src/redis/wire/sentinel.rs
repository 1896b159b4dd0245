//! Finding the server: by its address, or by asking Sentinels who is master now.
//!
//! All Sentinels are asked, because one that was cut off keeps naming the old master; at the same time, because one
//! that is gone may take packets and never answer. Where they name different ones, each is asked itself what it is: a
//! former master that has noticed is a replica by then. Two that both say they are masters are reported, and neither is
//! chosen: their histories part, and only a person knows which is to live.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;

use super::address::{RedisAddress, RedisLogin};
use super::connection::{RedisConnection, RedisEndpoint};
use super::error::{MasterClaimant, RedisError};
use super::info::ServerInfo;
use crate::base::clock::timeout;
use crate::redis::format::resp::RedisReply;

/// A replica must have heard from its master within so many seconds: twice the master's own pings.
const MAX_MASTER_SILENCE_SECONDS: u64 = 20;
/// A replica may lag by this many bytes: a moment of a busy server.
const MAX_REPLICA_LAG_BYTES: u64 = 16 << 20;

/// A Sentinel has its answer in memory. One that takes longer is down, and the others know as much.
const SENTINEL_TIMEOUT: Duration = Duration::from_secs(5);

/// Sentinels, and the name under which they know the master.
#[derive(Clone, Debug)]
pub struct Sentinels {
    addresses: Vec<RedisAddress>,
    master: String,
    login: RedisLogin,
    server: RedisEndpoint,
    /// Whether they have ever named a master that was one: then its name is right, whatever they say later.
    knew: Arc<AtomicBool>,
}

/// Where to find a server.
#[derive(Clone, Debug)]
pub enum RedisSource {
    /// Always there.
    Fixed(RedisEndpoint),
    /// Where the Sentinels say.
    Sentinels(Sentinels),
}

impl RedisSource {
    /// Where it is, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            RedisSource::Fixed(server) => server.address.to_string(),
            RedisSource::Sentinels(sentinels) => format!("master {} of the Sentinels", sentinels.master),
        }
    }

    /// Connects to the master, or to the one server there is.
    ///
    /// # Errors
    /// It can't be found or reached.
    pub async fn connect(&self) -> Result<(RedisConnection, ServerInfo), RedisError> {
        match self {
            RedisSource::Fixed(server) => connect_and_query(server).await,
            RedisSource::Sentinels(sentinels) => sentinels.connect_to_master().await,
        }
    }

    /// Connects to where a snapshot costs least: a healthy replica that lags little, else the master.
    ///
    /// # Errors
    /// Nothing can be found or reached.
    pub async fn connect_for_snapshot(&self) -> Result<(RedisConnection, ServerInfo), RedisError> {
        let sentinels = match self {
            RedisSource::Fixed(server) => return connect_and_query(server).await,
            RedisSource::Sentinels(sentinels) => sentinels,
        };
        let master = sentinels.connect_to_master().await?;
        let offset = master.1.number("master_repl_offset").unwrap_or(0);
        for address in sentinels.list_replicas().await {
            let opened = match connect_and_query(&sentinels.endpoint_at(address)).await {
                Ok(opened) => opened,
                Err(error) => {
                    tracing::warn!(%error, "a replica is passed over");
                    continue;
                }
            };
            let lag = offset.saturating_sub(opened.1.number("slave_repl_offset").unwrap_or(0));
            let same = opened.1.get("master_replid") == master.1.get("master_replid");
            // One whose own saves fail, for a full disk say, would fail with this one also.
            let saves = opened.1.persistence_trouble().is_none();
            if opened.1.is_healthy_replica(MAX_MASTER_SILENCE_SECONDS) && same && lag <= MAX_REPLICA_LAG_BYTES && saves
            {
                return Ok(opened);
            }
        }
        Ok(master)
    }
}

async fn connect_and_query(server: &RedisEndpoint) -> Result<(RedisConnection, ServerInfo), RedisError> {
    let mut connection = RedisConnection::connect(server).await?;
    let info = connection.query_info().await?;
    if info.number("loading") == Some(1) {
        let message = "it is loading its data".to_owned();
        return Err(RedisError::NotReady { server: connection.peer().to_owned(), message });
    }
    Ok((connection, info))
}

impl Sentinels {
    /// Sentinels that listen at `addresses` and know the master as `master`. `login` is for them; `server` says how to
    /// reach the servers that they name: login, TLS, clock. Its address is not used.
    #[must_use]
    pub fn new(addresses: Vec<RedisAddress>, master: String, login: RedisLogin, server: RedisEndpoint) -> Sentinels {
        Sentinels { addresses, master, login, server, knew: Arc::default() }
    }

    fn endpoint_at(&self, address: RedisAddress) -> RedisEndpoint {
        RedisEndpoint { address, ..self.server.clone() }
    }

    fn uses_tls(&self) -> bool {
        matches!(self.server.address, RedisAddress::Tcp { tls: true, .. })
    }

    async fn query_sentinel(&self, sentinel: &RedisAddress, command: &[u8]) -> Result<RedisReply, RedisError> {
        let server = RedisEndpoint { login: self.login.clone(), ..self.endpoint_at(sentinel.clone()) };
        let answer = timeout(&*self.server.clock, SENTINEL_TIMEOUT, async {
            let mut connection = RedisConnection::connect(&server).await?;
            connection.call(&[b"SENTINEL", command, self.master.as_bytes()]).await
        });
        let during = "it was asked for the master";
        let silent =
            || RedisError::Silent { server: sentinel.to_string(), during, seconds: SENTINEL_TIMEOUT.as_secs() };
        answer.await.ok_or_else(silent)?
    }

    /// Whom any Sentinel names.
    async fn find_named_masters(&self, troubles: &mut Vec<String>) -> Result<BTreeSet<RedisAddress>, RedisError> {
        let asked = self.addresses.iter().map(|sentinel| self.query_sentinel(sentinel, b"get-master-addr-by-name"));
        let (mut named, mut strangers) = (BTreeSet::new(), 0_usize);
        for (sentinel, answer) in self.addresses.iter().zip(join_all(asked).await) {
            match answer.map(|reply| parse_address_pair(&reply, self.uses_tls())) {
                Ok(Some(address)) => drop(named.insert(address)),
                Ok(None) => {
                    strangers = strangers.saturating_add(1);
                    troubles.push(format!("{sentinel} knows no master {:?}", self.master));
                }
                Err(error) => troubles.push(error.to_string()),
            }
        }
        // Sentinels that were started anew with an empty configuration are told of it again sooner or later.
        if strangers == self.addresses.len() && !self.knew.load(Ordering::Relaxed) {
            let sentinels: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
            return Err(RedisError::UnknownMaster { sentinels: sentinels.join(", "), master: self.master.clone() });
        }
        Ok(named)
    }

    /// The master, connected, by what the Sentinels say and what it says itself.
    async fn connect_to_master(&self) -> Result<(RedisConnection, ServerInfo), RedisError> {
        let mut troubles = Vec::new();
        let named = self.find_named_masters(&mut troubles).await?;
        if named.is_empty() {
            return Err(RedisError::Sentinel(format!("no Sentinel names the master: {}", troubles.join("; "))));
        }
        let opened =
            named.into_iter().map(|address| async move { connect_and_query(&self.endpoint_at(address)).await });
        let mut masters = Vec::new();
        for opened in join_all(opened).await {
            match opened {
                Ok(opened) if opened.1.is_master() => masters.push(opened),
                Ok((connection, _)) => troubles.push(format!("{} is no master", connection.peer())),
                Err(error @ (RedisError::Login { .. } | RedisError::Tls(_) | RedisError::Handshake { .. })) => {
                    return Err(error);
                }
                Err(error) => troubles.push(error.to_string()),
            }
        }
        match (masters.len(), masters.pop()) {
            (1, Some(master)) => {
                self.knew.store(true, Ordering::Relaxed);
                Ok(master)
            }
            (0, _) | (_, None) => Err(RedisError::Sentinel(format!(
                "no server is master of {:?} now: {}",
                self.master,
                troubles.join("; ")
            ))),
            (_, Some(last)) => {
                masters.push(last);
                let claimant = |(connection, info): &(RedisConnection, ServerInfo)| MasterClaimant {
                    server: connection.peer().to_owned(),
                    run_id: info.get("run_id").map(str::to_owned),
                };
                Err(RedisError::TwoMasters {
                    masters: masters.iter().map(claimant).collect(),
                    master: self.master.clone(),
                })
            }
        }
    }

    /// The replicas that the first Sentinel that answers holds to be well.
    async fn list_replicas(&self) -> Vec<RedisAddress> {
        for sentinel in &self.addresses {
            if let Ok(reply) = self.query_sentinel(sentinel, b"replicas").await {
                return reply
                    .elements()
                    .unwrap_or_default()
                    .iter()
                    .filter_map(|r| parse_healthy_replica(r, self.uses_tls()))
                    .collect();
            }
        }
        Vec::new()
    }
}

/// Host and port as `SENTINEL get-master-addr-by-name` gives them.
fn parse_address_pair(reply: &RedisReply, tls: bool) -> Option<RedisAddress> {
    match reply.elements()? {
        [host, port] => {
            Some(RedisAddress::Tcp { host: host.text()?.to_owned(), port: port.text()?.parse().ok()?, tls })
        }
        _ => None,
    }
}

/// One element of `SENTINEL replicas`: names and values in turn (`addReplySentinelRedisInstance`, sentinel.c).
fn parse_healthy_replica(reply: &RedisReply, tls: bool) -> Option<RedisAddress> {
    let fields: BTreeMap<&str, &str> = reply
        .elements()?
        .chunks_exact(2)
        .filter_map(|pair| Some((pair.first()?.text()?, pair.get(1)?.text()?)))
        .collect();
    let well = fields.get("flags") == Some(&"slave") && fields.get("master-link-status") == Some(&"ok");
    let port = fields.get("port")?.parse().ok().filter(|port| *port > 0)?;
    well.then(|| Some(RedisAddress::Tcp { host: (*fields.get("ip")?).to_owned(), port, tls }))?
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::Notify;

    use super::{Sentinels, parse_address_pair, parse_healthy_replica};
    use crate::base::clock::SystemClock;
    use crate::base::retry::ErrorClass;
    use crate::redis::format::resp::{RedisReply, encode_command};
    use crate::redis::wire::{RedisAddress, RedisEndpoint, RedisError, RedisLogin, RedisTlsFiles};

    /// Something that says the same to whatever it is asked.
    struct Stub {
        port: u16,
        says: Arc<Mutex<Vec<u8>>>,
        asked: Arc<Notify>,
    }

    impl Stub {
        /// It says it only when `after` was asked something, too.
        async fn start(says: Vec<u8>, after: Option<&Stub>) -> Stub {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let stub = Stub { port, says: Arc::new(Mutex::new(says)), asked: Arc::default() };
            let (says, asked, after) =
                (Arc::clone(&stub.says), Arc::clone(&stub.asked), after.map(|after| Arc::clone(&after.asked)));
            tokio::spawn(async move {
                while let Ok((mut socket, _)) = listener.accept().await {
                    let mut question = [0; 1024];
                    while let Ok(1..) = socket.read(&mut question).await {
                        asked.notify_one();
                        if let Some(after) = &after {
                            after.notified().await;
                        }
                        let answer = says.lock().unwrap().clone();
                        socket.write_all(&answer).await.unwrap();
                    }
                }
            });
            stub
        }

        async fn master(run_id: &str) -> Stub {
            let info = format!("role:master\r\nrun_id:{run_id}\r\n");
            Stub::start(format!("${}\r\n{info}\r\n", info.len()).into_bytes(), None).await
        }

        fn address(&self) -> RedisAddress {
            RedisAddress::Tcp { host: "127.0.0.1".into(), port: self.port, tls: false }
        }

        /// What a Sentinel says that names this one.
        fn named(&self) -> Vec<u8> {
            encode_command(&[b"127.0.0.1", self.port.to_string().as_bytes()])
        }
    }

    fn sentinels(stubs: &[&Stub]) -> Sentinels {
        let (login, addresses) = (RedisLogin::default(), stubs.iter().map(|stub| stub.address()).collect());
        let nowhere = RedisAddress::Tcp { host: String::new(), port: 0, tls: false };
        let server = RedisEndpoint::new(nowhere, login.clone(), RedisTlsFiles::default(), SystemClock::shared());
        Sentinels::new(addresses, "mymaster".into(), login, server)
    }

    /// The first one answers when the second is asked: one after the other, it would be given up.
    #[tokio::test]
    async fn all_sentinels_are_asked_at_once_and_two_masters_are_told_from_one() {
        let (one, two) = (Stub::master("a").await, Stub::master("b").await);
        let second = Stub::start(two.named(), None).await;
        let first = Stub::start(one.named(), Some(&second)).await;
        let error = sentinels(&[&first, &second]).connect_to_master().await.map(|(_, info)| info).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Transient);
        let said = error.to_string();
        let RedisError::TwoMasters { masters, .. } = error else { panic!("{said}") };
        let mut runs: Vec<_> = masters.iter().filter_map(|master| master.run_id.as_deref()).collect();
        runs.sort_unstable();
        assert_eq!(runs, ["a", "b"]);
        assert!(said.starts_with("two masters at once: 127.0.0.1:") && said.contains("\"mymaster\""), "{said}");
    }

    /// As Sentinels are that were started with an empty configuration.
    #[tokio::test]
    async fn a_master_that_was_known_is_waited_for_and_one_that_never_was_is_not() {
        let master = Stub::master("a").await;
        let sentinel = Stub::start(b"*-1\r\n".to_vec(), None).await;
        let asked = sentinels(&[&sentinel]);
        let unknown = || async { asked.connect_to_master().await.map(|(_, info)| info).unwrap_err() };
        let error = unknown().await;
        assert!(matches!(error, RedisError::UnknownMaster { .. }) && error.class() == ErrorClass::Permanent, "{error}");
        *sentinel.says.lock().unwrap() = master.named();
        asked.connect_to_master().await.unwrap();
        *sentinel.says.lock().unwrap() = b"*-1\r\n".to_vec();
        let error = unknown().await;
        assert!(error.class() == ErrorClass::Transient && error.to_string().contains("knows no master"), "{error}");
    }

    fn texts(words: &[&str]) -> RedisReply {
        RedisReply::Array(words.iter().map(|word| RedisReply::Bulk(word.to_string().into())).collect())
    }

    #[test]
    fn only_a_well_replica_is_taken() {
        let address = Some(RedisAddress::Tcp { host: "10.0.0.2".into(), port: 6380, tls: false });
        let fields = ["ip", "10.0.0.2", "port", "6380", "flags", "slave", "master-link-status", "ok"];
        assert_eq!(parse_healthy_replica(&texts(&fields), false), address);
        for (nth, value) in [(3, "0"), (3, "x"), (5, "s_down,slave,disconnected"), (7, "err")] {
            let mut fields = fields;
            fields[nth] = value;
            assert_eq!(parse_healthy_replica(&texts(&fields), false), None, "{value}");
        }
        assert_eq!(parse_address_pair(&texts(&["10.0.0.2", "6380"]), false), address);
        assert_eq!(parse_address_pair(&RedisReply::Null, false), None);
    }
}
