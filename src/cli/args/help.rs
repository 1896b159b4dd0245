//! The examples under each command's `--help`.

pub(in crate::cli) const OVERVIEW_HELP: &str = "\
First steps:
  walkeep init --cluster main --repository /srv/archive \\
    --connection 'host=/var/run/postgresql user=walkeep'
  walkeep receive              # streams WAL, keeps running
  walkeep check                # does it work, end to end?
  walkeep backup postgres
  walkeep plan postgres --target-time '5 minutes ago'      # can I go there?
  walkeep restore postgres --pgdata /srv/pg --target-time '5 minutes ago' \\
    --start

Redis, with a section [redis.cache] and its url in the configuration:
  walkeep receive cache        # a snapshot and the stream; keeps running
  walkeep plan redis --target-time '5 minutes ago'
  walkeep restore redis --dir /srv/cache --target-time '5 minutes ago' --start

Exit codes:
  0  done
  1  failed, or unhealthy
  2  wrong usage or configuration
  3  the target cannot be reached
  4  not found
  5  the repository or the network is not available; worth trying again
  6  integrity: damaged, forged, or the wrong key

walkeep COMMAND --help, or walkeep help COMMAND, shows examples for each.";

pub(in crate::cli) const INIT_HELP: &str = "\
Examples:
  walkeep init --cluster main \\
    --connection 'host=/var/run/postgresql user=walkeep' \\
    --repository /srv/archive
  walkeep init --cluster main --repository s3://backups/production \\
    --config /etc/walkeep/walkeep.toml

Run it as the user that PostgreSQL runs as, so that archive_command can read
the key. Nothing is overwritten.";

pub(in crate::cli) const CHECK_HELP: &str = "\
Examples:
  walkeep check                  # everything that is configured
  walkeep check main --json
  walkeep check cache            # a Redis instance

Looks at connection, privileges, slot and settings; writes, reads and deletes
an object in each repository; opens the key. Makes PostgreSQL switch to a new
WAL segment and waits until it is archived. Of Redis it says whether the
stream comes here, and whether walkeep receive could go on without a gap.";

pub(in crate::cli) const RECEIVE_HELP: &str = "\
Examples:
  walkeep receive                                     # all that are configured
  walkeep receive main --end-lsn 0/5000000
  walkeep receive cache                               # a Redis instance

One receiver that fails does not end the others; it is started again. Each
resumes exactly where its archive ends; for a Redis instance, walkeep takes a
snapshot first and follows its stream. To make commits wait for it, set
synchronous_standby_names = 'walkeep'.";

pub(in crate::cli) const ARCHIVE_PUSH_HELP: &str = "\
In postgresql.conf:
  archive_mode = on
  archive_command = 'walkeep archive-push %p'

Exits with 0 only when the file is durable in every required repository
(acknowledge in the configuration). Pushing the same content again succeeds.";

pub(in crate::cli) const ARCHIVE_GET_HELP: &str = "\
In postgresql.conf of a server that recovers, as walkeep restore writes it:
  restore_command = 'walkeep archive-get %f \"%p\"'

Without --standby it ends with 1 only when the file is proved to be beyond the
end of the archive. Every trouble ends with 200 and more (200 plus the usual
code), so that PostgreSQL stops instead of ending recovery early.";

pub(in crate::cli) const RECOVERY_ENDED_HELP: &str = "\
In pg_stat_tmp/walkeep_recovery.conf, as walkeep restore writes it:
  recovery_end_command = 'walkeep recovery-ended --pgdata .'

Run it by hand if that command could not be run. Removes the recovery target
and the restore_command that walkeep restore wrote. Nothing is removed while
the server is in recovery. Needs no configuration.";

pub(in crate::cli) const BACKUP_HELP: &str = "\
Examples:
  walkeep backup postgres
  walkeep backup postgres main --json
  walkeep backup redis cache
  walkeep backup redis cache --from-file /var/lib/redis/dump.rdb
  walkeep backup all
  walkeep backup keep 20261122T020000Z-F

Every backup restores alone. One of PostgreSQL stores only what no earlier one
has stored; one of Redis is taken as a replica gets it, walked while it comes,
and stored only if it is whole. The label goes to standard output.

A PostgreSQL backup with missing files or damaged pages is stored; the command
names them and ends with 6.";

pub(in crate::cli) const LIST_HELP: &str = "\
Examples:
  walkeep list
  walkeep list redis cache
  walkeep list postgres main --json";

pub(in crate::cli) const PLAN_HELP: &str = "\
Examples:
  walkeep plan postgres  # the newest reachable point
  walkeep plan postgres --target-time '2026-11-22 14:03:00+01'
  walkeep plan postgres main --target-xid 4711 --target-exclusive
  walkeep plan postgres --target-name before_migration --json
  walkeep plan postgres --before-event 0/5A2B3C8  # of walkeep log
  walkeep plan postgres --pgdata /srv/restored  # and whether there is room

Ends with 0 if the target can be reached and with 3 if it cannot.";

pub(in crate::cli) const RESTORE_HELP: &str = "\
Examples:
  walkeep restore postgres --pgdata /srv/restored \\
    --target-time '5 minutes ago' --start
  walkeep restore postgres main --pgdata /srv/restored --target-lsn 0/5A2B3C8
  walkeep restore postgres --pgdata /srv/restored \\
    --tablespace-mapping /fast=/srv/fast2
  walkeep restore postgres --pgdata /srv/old --delta \\
    --target-time '5 minutes ago'

The restored server is an isolated copy of its original. To replace the
original after a disaster, or to rebuild a standby:
  walkeep restore postgres --pgdata /srv/pg --takeover --start
  walkeep restore postgres --pgdata /srv/standby --standby \\
    --primary-conninfo 'host=db1 user=replicator' --slot standby1

A Redis instance (walkeep restore redis --help):
  walkeep restore redis --dir /srv/cache --target-time '5 minutes ago' --start

One database or table, into the running server, beside what is there:
  walkeep restore postgres --database zoptal --as zoptal_restore \\
    --target-time '10 minutes ago'
  walkeep restore postgres --table sales.orders --database zoptal \\
    --target-xid 4711 --target-exclusive

Nothing is touched before the target is proved to be reachable. Run it as the
user that PostgreSQL is to run as.";

pub(in crate::cli) const PLAN_REDIS_HELP: &str = "\
Examples:
  walkeep plan redis                                   # the newest moment
  walkeep plan redis --target-time '2026-11-22 14:03:00Z'
  walkeep plan redis cache \\
    --target-offset 84213@1f3ac09b  # of walkeep log redis
  walkeep plan redis --target-time '5 minutes ago' --nearest --json

Ends with 0 if the target can be reached and with 3 if it cannot.";

pub(in crate::cli) const RESTORE_REDIS_HELP: &str = "\
Examples:
  walkeep restore redis --dir /srv/cache --target-time '5 minutes ago' --start
  walkeep restore redis --dir /srv/cache --target-offset 84213@1f3ac09b
  walkeep restore redis cache --dir /srv/cache \\
    --backup 20261122T020000.123Z --target-immediate

Redis 7 and later, and Valkey, get an append-only folder, Redis 6 an
append-only file, and where no commands follow the snapshot a plain dump.rdb.
A server loads one kind and ignores the others: start it with the options that
are printed.";

pub(in crate::cli) const RESTORE_ALL_HELP: &str = "\
Examples:
  walkeep plan all --target-time '5 minutes ago'
  walkeep restore all --pgdata /srv/restored \\
    --redis-dir /srv/restored-redis --target-time '5 minutes ago' --start
  walkeep restore all --cluster main --instance cache --pgdata /srv/pg \\
    --redis-dir /srv/redis --target-time '2026-11-22 14:03:00Z'

Both are planned first; if one cannot reach the moment, or one of the folders
is not empty, nothing is touched. PostgreSQL comes back with the commits its
own clock stamped by then, Redis with the commands that walkeep's receiver had
by then; what may lie between the two is printed, with what their clocks
differed by as far as it was measured, and what that rests on.";

pub(in crate::cli) const LOG_HELP: &str = "\
Examples:
  walkeep log --since '2 hours ago'
  walkeep log postgres main --event drop --event truncate \\
    --relation public.orders
  walkeep log --event delete --rows 100 --since 2026-11-22T14:00:00Z --json
  walkeep restore postgres main --pgdata /srv/restored \\
    --before-event 0/5A2B3C8 --start

What happened is read from the archived WAL; the server is not asked. Each
line ends with the target that restores to just before the event. What an
aborted transaction did is not shown.";

pub(in crate::cli) const LOG_REDIS_HELP: &str = "\
Examples:
  walkeep log redis --since '2 hours ago'
  walkeep log redis cache --event flush-all --event flush-db
  walkeep log redis --event delete --keys 100 --json
  walkeep restore redis cache --dir /srv/cache \\
    --target-offset 84213@1f3ac09b --start

What happened is read from the archived stream of commands; the server is not
asked. Each line ends with the target that restores to just before the event.
A key that expires or is evicted comes as a deletion: a storm of them is told
as well.";

pub(in crate::cli) const VERIFY_HELP: &str = "\
Examples:
  walkeep verify
  walkeep verify main --backup 20261122T020000Z-F

Ends with 6 if anything is damaged or missing, and names it.";

pub(in crate::cli) const CLEANUP_HELP: &str = "\
Examples:
  walkeep cleanup --dry-run      # what would go, and why
  walkeep cleanup                # each repository by its own retention
  walkeep cleanup 30             # keeps every moment of the last 30 days
  walkeep cleanup --cluster cache # a Redis instance alone

Nothing goes that a kept backup needs, or one that is under way. It may be run
again after it was interrupted.";

pub(in crate::cli) const HEALTH_HELP: &str = "\
Examples:
  walkeep health
  walkeep health main --json

Looks at the archive, each server, PostgreSQL's slot and archiver, and the
local disks. Changes nothing.";

pub(in crate::cli) const REPOSITORY_HELP: &str = "\
Examples:
  walkeep repository add offsite s3://backups/production --retention 90d
  walkeep repository sync offsite      # copies what the others have
  walkeep repository list              # what does each of them lack?
  walkeep repository check offsite     # does it work, and is it complete?
  walkeep repository remove offsite    # its objects stay";

pub(in crate::cli) const REPOSITORY_ADD_HELP: &str = "\
Examples:
  walkeep repository add second /mnt/backup/walkeep
  walkeep repository add offsite s3://backups/production --retention 90d
  walkeep repository add offsite s3://backups/production \\
    --setting endpoint=https://s3.example.org --setting region=eu-1

Creates the repository if there is none, brings the keys, and proves that it
takes, returns and deletes an object and replaces none. Only then it is added
to the configuration. Credentials are best left in the environment
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …). A running receiver follows the
new repository after a restart.";

pub(in crate::cli) const REPOSITORY_LIST_HELP: &str = "\
Examples:
  walkeep repository list
  walkeep repository list --json

Compares names by listing; nothing is read back. Use walkeep verify for that.";

pub(in crate::cli) const REPOSITORY_SYNC_HELP: &str = "\
Examples:
  walkeep repository sync offsite              # from all the others
  walkeep repository sync local offsite        # from local alone
  walkeep repository sync offsite --dry-run
  walkeep repository sync offsite --from-newest-backup

Run it beside a receiver, and again after an interruption: what exists is not
copied again. Exits with 5 if a repository is unreachable, and with 6 if an
object is damaged in every source.";

pub(in crate::cli) const REPOSITORY_CHECK_HELP: &str = "\
Examples:
  walkeep repository check
  walkeep repository check offsite --json

Exits with 0 if it works and lacks nothing, with 1 if it lacks something, and
with 5 if it is unreachable.";

pub(in crate::cli) const REPOSITORY_REMOVE_HELP: &str = "\
Examples:
  walkeep repository remove offsite
  walkeep repository remove offsite --force    # even if only it has something

Takes the section out of the configuration. Nothing in the repository is
deleted.";

pub(in crate::cli) const FORK_HELP: &str = "\
Examples:
  walkeep fork list
  walkeep fork resolve main --timeline 1 --at 0/5000148 --keep archive

A fork is a server that was set back or cloned. Its WAL is not archived, and
health and check report it until you decide. Nothing in the archive changes.";

pub(in crate::cli) const INDEX_HELP: &str = "\
Examples:
  walkeep index stats
  walkeep index rebuild

The index is derived from the repository; deleting it loses nothing.";

#[cfg(test)]
mod tests {
    #[test]
    fn footers_fit_a_narrow_terminal() {
        let all = [
            super::OVERVIEW_HELP,
            super::INIT_HELP,
            super::CHECK_HELP,
            super::RECEIVE_HELP,
            super::ARCHIVE_PUSH_HELP,
            super::ARCHIVE_GET_HELP,
            super::RECOVERY_ENDED_HELP,
            super::BACKUP_HELP,
            super::LIST_HELP,
            super::PLAN_HELP,
            super::PLAN_REDIS_HELP,
            super::RESTORE_HELP,
            super::RESTORE_REDIS_HELP,
            super::RESTORE_ALL_HELP,
            super::LOG_HELP,
            super::LOG_REDIS_HELP,
            super::VERIFY_HELP,
            super::CLEANUP_HELP,
            super::HEALTH_HELP,
            super::FORK_HELP,
            super::INDEX_HELP,
            super::REPOSITORY_HELP,
            super::REPOSITORY_ADD_HELP,
            super::REPOSITORY_LIST_HELP,
            super::REPOSITORY_SYNC_HELP,
            super::REPOSITORY_CHECK_HELP,
            super::REPOSITORY_REMOVE_HELP,
        ];
        for line in all.iter().flat_map(|footer| footer.lines()) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
