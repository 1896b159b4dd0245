//! PostgreSQL's streaming-replication protocol.
