//! Finding the server: by its address, or by asking Sentinels who is master now.
//!
//! All Sentinels are asked, because one that was cut off keeps naming the old master. Where they name different ones, each is asked itself
//! what it is: a former master that has noticed is a replica by then. Two that both say they are masters are reported, and nothing is taken
//! from either: their histories part, and only a person knows which is to live.

use std::collections::BTreeMap;

use super::address::{Address, Login};
use super::connection::{Connection, Server};
use super::error::Error;
use super::info::Info;
use crate::resp::Reply;

/// A replica must have heard from its master within so many seconds: twice the master's own pings.
const HEARD_WITHIN: u64 = 20;
/// A replica may lag by this many bytes: a moment of a busy server.
const LAG: u64 = 16 << 20;

/// Sentinels, and the name under which they know the master.
#[derive(Clone, Debug)]
pub struct Sentinels {
    /// Where they listen.
    pub addresses: Vec<Address>,
    /// The master's name.
    pub master: String,
    /// Who logs in at the Sentinels.
    pub login: Login,
    /// How to reach the servers they name: login, TLS, clock. Its address is not used.
    pub server: Server,
}

/// Where to find a server.
#[derive(Clone, Debug)]
pub enum Source {
    /// Always there.
    Fixed(Server),
    /// Where the Sentinels say.
    Sentinels(Sentinels),
}

impl Source {
    /// Where it is, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Source::Fixed(server) => server.address.to_string(),
            Source::Sentinels(sentinels) => format!("master {} of the Sentinels", sentinels.master),
        }
    }

    /// Connects to the master, or to the one server there is.
    ///
    /// # Errors
    /// It can't be found or reached.
    pub async fn connect(&self) -> Result<(Connection, Info), Error> {
        match self {
            Source::Fixed(server) => open(server).await,
            Source::Sentinels(sentinels) => sentinels.master().await,
        }
    }

    /// Connects to where a snapshot costs least: a healthy replica that lags little, else the master.
    ///
    /// # Errors
    /// Nothing can be found or reached.
    pub async fn connect_for_snapshot(&self) -> Result<(Connection, Info), Error> {
        let sentinels = match self {
            Source::Fixed(server) => return open(server).await,
            Source::Sentinels(sentinels) => sentinels,
        };
        let master = sentinels.master().await?;
        let offset = master.1.number("master_repl_offset").unwrap_or(0);
        for address in sentinels.replicas().await {
            let opened = match open(&sentinels.at(address)).await {
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
            if opened.1.is_healthy_replica(HEARD_WITHIN) && same && lag <= LAG && saves {
                return Ok(opened);
            }
        }
        Ok(master)
    }
}

async fn open(server: &Server) -> Result<(Connection, Info), Error> {
    let mut connection = Connection::connect(server).await?;
    let info = connection.info().await?;
    if info.number("loading") == Some(1) {
        let message = "it is loading its data".to_owned();
        return Err(Error::NotReady { server: connection.peer().to_owned(), message });
    }
    Ok((connection, info))
}

impl Sentinels {
    fn at(&self, address: Address) -> Server {
        Server { address, ..self.server.clone() }
    }

    fn tls(&self) -> bool {
        matches!(self.server.address, Address::Tcp { tls: true, .. })
    }

    async fn ask(&self, sentinel: &Address, command: &[u8]) -> Result<Reply, Error> {
        let mut connection =
            Connection::connect(&Server { login: self.login.clone(), ..self.at(sentinel.clone()) }).await?;
        connection.call(&[b"SENTINEL", command, self.master.as_bytes()]).await
    }

    /// The master, connected, by what the Sentinels say and what it says itself.
    async fn master(&self) -> Result<(Connection, Info), Error> {
        let mut named: BTreeMap<Address, usize> = BTreeMap::new();
        let (mut troubles, mut strangers) = (Vec::new(), 0_usize);
        for sentinel in &self.addresses {
            match self.ask(sentinel, b"get-master-addr-by-name").await {
                Ok(reply) => match pair(&reply, self.tls()) {
                    Some(address) => *named.entry(address).or_default() += 1,
                    None => {
                        strangers = strangers.saturating_add(1);
                        troubles.push(format!("{sentinel} knows no master {:?}", self.master));
                    }
                },
                Err(error) => troubles.push(error.to_string()),
            }
        }
        if strangers == self.addresses.len() {
            let sentinels: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
            return Err(Error::UnknownMaster { sentinels: sentinels.join(", "), master: self.master.clone() });
        }
        if named.is_empty() {
            return Err(Error::Sentinel(format!("no Sentinel names the master: {}", troubles.join("; "))));
        }
        let mut masters = Vec::new();
        for address in named.keys() {
            match open(&self.at(address.clone())).await {
                Ok(opened) if opened.1.is_master() => masters.push(opened),
                Ok((connection, _)) => troubles.push(format!("{} is no master", connection.peer())),
                Err(error @ (Error::Login { .. } | Error::Tls(_) | Error::Handshake { .. })) => return Err(error),
                Err(error) => troubles.push(error.to_string()),
            }
        }
        match (masters.len(), masters.pop()) {
            (1, Some(master)) => Ok(master),
            (0, _) | (_, None) => {
                Err(Error::Sentinel(format!("no server is master of {:?} now: {}", self.master, troubles.join("; "))))
            }
            (_, Some(last)) => {
                let mut names: Vec<&str> = masters.iter().map(|(connection, _)| connection.peer()).collect();
                names.push(last.0.peer());
                Err(Error::Sentinel(format!(
                    "two masters at once: {} all say they are master of {:?}; their data differs, and walkeep does not guess which is right",
                    names.join(" and "),
                    self.master
                )))
            }
        }
    }

    /// The replicas that the first Sentinel that answers holds to be well.
    async fn replicas(&self) -> Vec<Address> {
        for sentinel in &self.addresses {
            if let Ok(reply) = self.ask(sentinel, b"replicas").await {
                return reply.elements().unwrap_or_default().iter().filter_map(|r| replica(r, self.tls())).collect();
            }
        }
        Vec::new()
    }
}

/// Host and port as `SENTINEL get-master-addr-by-name` gives them.
fn pair(reply: &Reply, tls: bool) -> Option<Address> {
    match reply.elements()? {
        [host, port] => Some(Address::Tcp { host: host.text()?.to_owned(), port: port.text()?.parse().ok()?, tls }),
        _ => None,
    }
}

/// One element of `SENTINEL replicas`: names and values in turn (`addReplySentinelRedisInstance`, sentinel.c).
fn replica(reply: &Reply, tls: bool) -> Option<Address> {
    let fields: BTreeMap<&str, &str> = reply
        .elements()?
        .chunks_exact(2)
        .filter_map(|pair| Some((pair.first()?.text()?, pair.get(1)?.text()?)))
        .collect();
    let well = fields.get("flags") == Some(&"slave") && fields.get("master-link-status") == Some(&"ok");
    let port = fields.get("port")?.parse().ok().filter(|port| *port > 0)?;
    well.then(|| Some(Address::Tcp { host: (*fields.get("ip")?).to_owned(), port, tls }))?
}

#[cfg(test)]
mod tests {
    use super::{pair, replica};
    use crate::redis::Address;
    use crate::resp::Reply;

    fn texts(words: &[&str]) -> Reply {
        Reply::Array(words.iter().map(|word| Reply::Bulk(word.to_string().into())).collect())
    }

    #[test]
    fn only_a_well_replica_is_taken() {
        let address = Some(Address::Tcp { host: "10.0.0.2".into(), port: 6380, tls: false });
        let fields = ["ip", "10.0.0.2", "port", "6380", "flags", "slave", "master-link-status", "ok"];
        assert_eq!(replica(&texts(&fields), false), address);
        for (nth, value) in [(3, "0"), (3, "x"), (5, "s_down,slave,disconnected"), (7, "err")] {
            let mut fields = fields;
            fields[nth] = value;
            assert_eq!(replica(&texts(&fields), false), None, "{value}");
        }
        assert_eq!(pair(&texts(&["10.0.0.2", "6380"]), false), address);
        assert_eq!(pair(&Reply::Null, false), None);
    }
}
