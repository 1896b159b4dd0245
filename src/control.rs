//! The control socket: how a command hands its work to a running service.
