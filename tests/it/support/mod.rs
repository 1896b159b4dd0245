//! What the tests stand on: real servers, the program that was built, and scratch directories that go away.

pub(crate) mod cluster;
pub(crate) mod disk;
pub(crate) mod installed;
pub(crate) mod process;
pub(crate) mod redis;
pub(crate) mod relay;
pub(crate) mod scratch;
pub(crate) mod site;
pub(crate) mod store;
pub(crate) mod template;
pub(crate) mod waldump;
pub(crate) mod workload;

pub(crate) use cluster::{Cluster, Options};
pub(crate) use installed::{QUICK, majors};
pub(crate) use process::{Finished, Running};
pub(crate) use scratch::Scratch;
pub(crate) use site::Site;
