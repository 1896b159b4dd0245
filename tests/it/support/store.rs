//! An object store that speaks S3, and a network before it that can be slow or cut.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::process::{self, Orphan, Running, until};
use super::{Scratch, Site, installed};

/// moto's S3, in memory, on a port of its own choice, with one bucket.
#[derive(Debug)]
pub(crate) struct S3 {
    _server: Running,
    _scratch: Scratch,
    port: u16,
}

const BUCKET: &str = "walkeep-test";

impl S3 {
    pub(crate) fn start() -> S3 {
        let program = installed::cache().join("venv/bin/moto_server");
        assert!(program.exists(), "{} is not there: run tests/setup.sh", program.display());
        let scratch = Scratch::new();
        let mut command = process::command(program, Orphan::Kill);
        command.args(["-H", "127.0.0.1", "-p", "0"]);
        let server = Running::start(command, &scratch.join("moto.log"));
        // " * Running on http://127.0.0.1:41235"
        let port = until(Duration::from_secs(60), || {
            let text = server.output();
            text.lines().find_map(|line| line.rsplit_once("127.0.0.1:")?.1.trim().parse().ok())
        });
        let port = port.unwrap_or_else(|| panic!("moto does not start: {}", server.output()));
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect to moto");
        let request =
            format!("PUT /{BUCKET} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("make a bucket");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("make a bucket");
        assert!(answer.contains(" 200 "), "{answer}");
        S3 { _server: server, _scratch: scratch, port }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The names of the objects in the repository that [`S3::add_to`] makes, as far as they begin so.
    pub(crate) fn objects(&self, prefix: &str) -> std::collections::BTreeSet<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connect to moto");
        let request = format!(
            "GET /{BUCKET}?list-type=2&prefix=second/{prefix} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("list");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("list");
        assert!(answer.contains(" 200 ") && answer.contains("<IsTruncated>false</IsTruncated>"), "{answer}");
        let keys = answer.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
        keys.filter_map(|key| Some(key.strip_prefix("second/")?.to_owned())).collect()
    }

    /// `walkeep repository add offsite` with a repository here, whose credentials go to the configuration.
    pub(crate) fn add_to(&self, site: &Site) -> process::Finished {
        self.add_through(site, self.port)
    }

    /// The same, reached over another port.
    pub(crate) fn add_through(&self, site: &Site, port: u16) -> process::Finished {
        let endpoint = format!("endpoint=http://127.0.0.1:{port}");
        let url = format!("s3://{BUCKET}/second");
        let mut command = vec!["repository", "add", "offsite", &url, "--retention", "90d", "--setting", &endpoint];
        for setting in ["allow-http=true", "access-key-id=test", "secret-access-key=testtest", "region=us-east-1"] {
            command.extend(["--setting", setting]);
        }
        site.walkeep(&command)
    }

    /// `walkeep init` with a repository here, and how to get there in the configuration.
    pub(crate) fn init(&self, site: &Site) {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        let settings = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "testtest"),
            ("AWS_REGION", "us-east-1"),
        ];
        let url = format!("s3://{BUCKET}/some/path");
        let mut command = process::walkeep();
        command.args(["init", "--cluster", "main", "--repository", &url]).envs(settings);
        command.arg("--state-dir").arg(site.state_dir()).arg("--config").arg(site.config());
        process::run(command).expect_ok();
        let line = format!("url = \"{url}\"");
        let more = format!(
            "{line}\nendpoint = \"{endpoint}\"\nallow-http = true\naccess-key-id = \"test\"\nsecret-access-key = \
                \"testtest\"\nregion = \"us-east-1\""
        );
        let text = fs::read_to_string(site.config()).expect("the configuration");
        assert!(text.contains(&line), "{text}");
        fs::write(site.config(), text.replace(&line, &more)).expect("the configuration");
    }
}

/// What a network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// Small pieces with pauses between them.
    Slow,
    /// Every connection is broken, and none is taken.
    Cut,
    /// What is said is kept until it passes again.
    Hold,
}

/// Takes connections and passes them on to a server on this machine.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    network: Arc<Network>,
}

#[derive(Debug)]
struct Network {
    mode: AtomicU8,
    /// Whoever asks for this changes what the network does.
    trap: Mutex<Option<(String, Mode)>>,
}

impl Network {
    fn is(&self, mode: Mode) -> bool {
        self.mode.load(Ordering::Relaxed) == mode as u8
    }

    /// What a client says, a request or a part of one.
    fn heard(&self, bytes: &[u8]) {
        let trap = self.trap.lock().expect("the trap");
        let named = |(name, _): &&(String, Mode)| bytes.windows(name.len()).any(|part| part == name.as_bytes());
        if let Some((_, mode)) = trap.as_ref().filter(named) {
            self.mode.store(*mode as u8, Ordering::Relaxed);
        }
    }
}

impl Proxy {
    pub(crate) fn before(server: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("a port").port();
        let network = Arc::new(Network { mode: AtomicU8::new(Mode::Pass as u8), trap: Mutex::new(None) });
        let of = Arc::clone(&network);
        // Ends with the test run: it holds nothing but its port.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if of.is(Mode::Cut) {
                    continue;
                }
                let Ok(upstream) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                for (from, to, asks) in [(&client, &upstream, true), (&upstream, &client, false)] {
                    let (from, to) = (from.try_clone().expect("dup"), to.try_clone().expect("dup"));
                    let of = Arc::clone(&of);
                    std::thread::spawn(move || pass(&from, &to, asks, &of));
                }
            }
        });
        Proxy { port, network }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.network.trap.lock().expect("the trap") = None;
        self.network.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// Cuts the network as soon as somebody asks for this object.
    pub(crate) fn cut_at(&self, name: &str) {
        *self.network.trap.lock().expect("the trap") = Some((name.to_owned(), Mode::Cut));
    }

    /// Holds everything back as soon as somebody asks for this object.
    pub(crate) fn hold_at(&self, name: &str) {
        *self.network.trap.lock().expect("the trap") = Some((name.to_owned(), Mode::Hold));
    }
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, asks: bool, network: &Network) {
    let mut buffer = vec![0; 64 << 10];
    from.set_read_timeout(Some(Duration::from_millis(200))).ok();
    loop {
        if network.is(Mode::Cut) {
            break;
        }
        let most = if network.is(Mode::Slow) { 16 << 10 } else { buffer.len() };
        match from.read(&mut buffer[..most]) {
            Ok(0) => break,
            Ok(read) => {
                if asks {
                    network.heard(&buffer[..read]);
                }
                while network.is(Mode::Hold) {
                    std::thread::sleep(Duration::from_millis(10));
                }
                if network.is(Mode::Slow) {
                    std::thread::sleep(Duration::from_millis(100));
                }
                if network.is(Mode::Cut) || to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}
