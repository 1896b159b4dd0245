//! The examples under each command's `--help`.

pub(super) const OVERVIEW: &str = "\
walkeep COMMAND --help shows examples for each command.";

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed, or unhealthy
  2  wrong usage or configuration
  3  the target cannot be reached
  4  not found
  5  the repository or the network is not available; worth trying again
  6  integrity: damaged, forged, or the wrong key";

pub(super) const INIT: &str = "\
Examples:
  walkeep init --cluster main --connection 'host=/var/run/postgresql user=walkeep' --repository /srv/archive
  walkeep init --cluster main --repository s3://backups/production --config /etc/walkeep/walkeep.toml

Run it as the user that PostgreSQL runs as, so that archive_command can read the key. Nothing is overwritten.";

pub(super) const CHECK: &str = "\
Examples:
  walkeep check
  walkeep check main --json

Looks at connection, privileges, slot and settings, writes, reads and deletes an object in each repository, opens
the key, makes the server switch to a new WAL segment, and waits until that segment is archived.";

pub(super) const ARCHIVE_PUSH: &str = "\
In postgresql.conf:
  archive_mode = on
  archive_command = 'walkeep archive-push %p'

Ends with 0 only when the file is durable in every repository. The same content again is success.";
