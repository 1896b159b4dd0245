//! Whose clock it is.
//!
//! Two programs go by one clock if one kernel keeps it for both. A kernel draws a number at each boot and shows the
//! same one in all of its containers, whatever names and `machine-id`s they have. So where two numbers are equal it was
//! one clock, and where they differ it was not, or the machine was booted in between. Of the number a hash is kept: it
//! goes to where backups go, and is nobody else's concern.

use std::fmt;
use std::str::FromStr;

/// Where Linux shows it (random(4)). Other systems have none, and nothing is known there.
const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";

/// As it is written.
const MACHINE_DIGITS: usize = 16;

/// A machine, from one boot to the next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Machine(u64);

/// What was given names no machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no machine: 16 hexadecimal digits in lower case")]
pub struct ParseMachineError(String);

impl Machine {
    /// The one that this program runs on, if it says which.
    pub(super) fn current() -> Option<Machine> {
        std::fs::read_to_string(BOOT_ID_PATH).ok().and_then(|id| Machine::from_boot_id(&id))
    }

    /// The one with this number; `None` if that is empty.
    #[must_use]
    pub fn from_boot_id(id: &str) -> Option<Machine> {
        let id = Some(id.trim()).filter(|id| !id.is_empty())?;
        blake3::hash(id.as_bytes()).as_bytes().first_chunk().map(|first| Machine(u64::from_be_bytes(*first)))
    }
}

impl FromStr for Machine {
    type Err = ParseMachineError;

    fn from_str(text: &str) -> Result<Machine, ParseMachineError> {
        let digits = text.len() == MACHINE_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number.map(Machine).ok_or_else(|| ParseMachineError(text.chars().take(64).collect()))
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0MACHINE_DIGITS$x}", self.0)
    }
}

impl TryFrom<String> for Machine {
    type Error = ParseMachineError;

    fn try_from(text: String) -> Result<Machine, ParseMachineError> {
        text.parse()
    }
}

impl From<Machine> for String {
    fn from(machine: Machine) -> String {
        machine.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::Machine;

    #[test]
    fn a_machine_is_known_again_and_its_number_is_not() {
        let id = "7c2e1f0a-0d6b-4c1e-9a55-2f9f0f6f3a11";
        let machine = Machine::from_boot_id(id).unwrap();
        assert_eq!(Machine::from_boot_id(&format!("{id}\n")), Some(machine));
        assert_ne!(Machine::from_boot_id("7c2e1f0a-0d6b-4c1e-9a55-2f9f0f6f3a12"), Some(machine));
        assert_eq!((Machine::from_boot_id(""), Machine::from_boot_id("\n")), (None, None));
        let text = machine.to_string();
        assert_eq!((text.len(), text.parse()), (16, Ok(machine)));
        assert!(!id.replace('-', "").contains(&text));
        for wrong in ["", "7c2e1f0a", "7C2E1F0A0D6B4C1E", "7c2e1f0a0d6b4c1e9", "+c2e1f0a0d6b4c1e"] {
            assert!(wrong.parse::<Machine>().is_err(), "{wrong}");
        }
    }
}
