//! What stands between a server and whoever speaks to it: hands everything on, until it is told to hold it back or to
//! damage it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::redis::RedisServer;

/// Listens in place of a server. Its threads end with the connections, and when it is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) port: u16,
    will: Arc<Will>,
}

#[derive(Debug)]
struct Will {
    /// So many bytes from the server pass on each connection; what comes after them waits.
    limit: AtomicU64,
    /// The next such byte of a stream of commands is changed.
    flip: Mutex<Option<u8>>,
    /// What clients have said, connection after connection.
    said: Mutex<Vec<u8>>,
    /// Once a client has said this, everything from the server waits.
    last_word: Mutex<Option<&'static str>>,
    over: AtomicBool,
}

impl Relay {
    pub(crate) fn before(server: &RedisServer) -> Self {
        Self::before_port(server.port)
    }

    /// The same before any server on this machine.
    pub(crate) fn before_port(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (limit, flip, said, over) = (AtomicU64::new(u64::MAX), Mutex::default(), Mutex::default(), false.into());
        let will = Arc::new(Will { limit, flip, said, last_word: Mutex::default(), over });
        let shared = Arc::clone(&will);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a client");
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let (up, down) = (client.try_clone().expect("clone"), server.try_clone().expect("clone"));
                let (one, other) = (Arc::clone(&shared), Arc::clone(&shared));
                std::thread::spawn(move || one.hand_up(up, server));
                std::thread::spawn(move || other.hand_down(down, client));
            }
        });
        Self { port, will }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Holds back what each connection gets beyond so many bytes, from now on; connections stay open.
    pub(crate) fn hold_after(&self, bytes: u64) {
        self.will.limit.store(bytes, Ordering::SeqCst);
    }

    /// Holds back everything from the server as soon as a client says this.
    pub(crate) fn hold_after_word(&self, word: &'static str) {
        *self.will.last_word.lock().expect("the word") = Some(word);
    }

    /// Whether a client has said what [`Relay::hold_after_word`] waits for.
    pub(crate) fn holds(&self) -> bool {
        self.will.limit.load(Ordering::SeqCst) == 0
    }

    pub(crate) fn let_pass(&self) {
        *self.will.last_word.lock().expect("the word") = None;
        self.hold_after(u64::MAX);
    }

    /// Changes one bit of the next such byte that comes with a stream of commands.
    pub(crate) fn flip(&self, byte: u8) {
        *self.will.flip.lock().expect("the byte") = Some(byte);
    }

    /// The highest offset that a replica has acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        let said = String::from_utf8_lossy(&self.will.said.lock().expect("what was said")).into_owned();
        let offsets = said.split("\r\nACK\r\n$").skip(1).filter_map(|rest| rest.split("\r\n").nth(1)?.parse().ok());
        offsets.max().unwrap_or(0)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.will.over.store(true, Ordering::SeqCst);
    }
}

impl Will {
    fn hand_up(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            self.said.lock().expect("what was said").extend_from_slice(&buffer[..len]);
            if let Some(word) = *self.last_word.lock().expect("the word")
                && buffer[..len].windows(word.len()).any(|window| window == word.as_bytes())
            {
                self.limit.store(0, Ordering::SeqCst);
            }
            if to.write_all(&buffer[..len]).is_err() {
                break;
            }
        }
        to.shutdown(Shutdown::Both).ok();
    }

    fn hand_down(&self, mut from: TcpStream, mut to: TcpStream) {
        let (mut buffer, mut passed, mut is_stream) = ([0; 64 << 10], 0, false);
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            let bytes = &mut buffer[..len];
            if is_stream {
                self.damage(bytes);
            }
            is_stream |= bytes.windows(9).any(|window| window == b"+CONTINUE");
            let mut rest = &buffer[..len];
            while !rest.is_empty() {
                let room = self.limit.load(Ordering::SeqCst).saturating_sub(passed);
                let (now, later) = rest.split_at(usize::try_from(room).unwrap_or(usize::MAX).min(rest.len()));
                if self.over.load(Ordering::SeqCst) || to.write_all(now).is_err() {
                    from.shutdown(Shutdown::Both).ok();
                    return;
                }
                if !later.is_empty() {
                    std::thread::sleep(Duration::from_millis(10));
                }
                (rest, passed) = (later, passed + now.len() as u64);
            }
        }
        to.shutdown(Shutdown::Both).ok();
    }

    fn damage(&self, bytes: &mut [u8]) {
        let mut flip = self.flip.lock().expect("the byte");
        if let Some(found) = bytes.iter_mut().find(|byte| Some(**byte) == *flip) {
            *found ^= 1;
            *flip = None;
        }
    }
}
