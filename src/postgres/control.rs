//! `global/pg_control`, PostgreSQL 13 to 18.
