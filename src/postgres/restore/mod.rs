//! Restores: a target is resolved to the record where PostgreSQL stops, everything that this needs is proved to be
//! there, and only then is the disk touched.
//!
//! [`target`] says what is wanted. [`plan_restore()`] chooses the backup and resolves the target ([`resolve_target`])
//! from [`archived_log`] about the archived log, which [`indexed_log`] answers; its result is a value. [`restore`]
//! carries a plan out: it looks the place over ([`destination`]), puts the files there ([`placement`]) and writes the
//! settings that make the server stop at the planned record ([`recovery_settings`]) and that its role needs
//! ([`server_role`]). [`server_start`] then starts it and waits until it has. What only recovery needs is removed at
//! its end ([`recovery_end`]).

pub mod resolve_target;
pub mod archived_log;
pub mod server_start;
pub mod indexed_log;
pub mod target;
pub mod destination;
pub mod delta;
pub mod recovery_settings;
pub mod server_role;
pub mod recovery_end;
pub mod placement;
pub mod plan;
pub mod planner;
pub mod selective;
mod backup_reading;
mod configuration_file;
mod created_tablespace;
mod destination_error;
mod error;
mod left_out_files;
mod pack_proof;
mod running_server;
pub mod server_configuration;
mod written_configuration;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::blocking::run_blocking;
use crate::postgres::archive::coverage::reachable_archive;
use crate::postgres::archive::lookup::WalLookup;
use crate::postgres::archive::manifest::{BackupSummary, Manifest};
use crate::postgres::archive::reindex::ArchiveSegments;
use crate::postgres::archive::spool::Spool;
use crate::postgres::archive::unfinished::UnfinishedSegment;
use crate::postgres::archive::{Archive, ArchiveIdentity, inventory};
use crate::postgres::format::backup_label::TablespaceMap;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineHistory;
use crate::postgres::index::{IndexEntry, SegmentsByTimeline, WalIndex};
use crate::postgres::restore::target::AcceptedDefects;
use crate::vault::VaultError;

use backup_reading::{PROGRESS_INTERVAL, read_backup_file, read_manifest, tablespace_map};
use created_tablespace::CreatedTablespace;
use destination::{CheckedDestination, Destination};
use pack_proof::{BrokenBackup, ListedPacks};
use placement::Placement;
use plan::{PlanBackup, PlanInput, ProvedRestore, RestorePlan};
use recovery_settings::{AUTO_CONF, RECOVERY_FILE, RecoverySettings};
use server_configuration::{ConfigurationPlace, ConfigurationSearch, ConfigurationText, POSTGRESQL_CONF};
use server_role::ServerRole;
use target::{RecoveryTargetAction, RestoreRequest};
use written_configuration::{BackupConfiguration, ConfigurationRequest, WrittenConfiguration};

pub use error::RestoreError;
pub use written_configuration::WrittenSetting;

/// Resolves a request by what is in the archive now, and in this machine's spool if there is one, and proves it, or
/// says why it cannot be reached. Touches nothing.
///
/// # Errors
/// [`RestoreError`]; a target that cannot be reached is none.
pub async fn plan_restore(
    archive: &Arc<Archive>,
    index: &Arc<WalIndex>,
    spool: Option<Spool>,
    request: RestoreRequest,
) -> Result<RestorePlan, RestoreError> {
    let cluster = archive.cluster().to_string();
    let Some(identity) = archive.identity().await? else { return Err(RestoreError::EmptyArchive { cluster }) };
    let unreachable: Vec<String> =
        archive.vault().unreachable().map(|(name, error)| unreachable_note(name, &error)).collect();
    let (archive, gone) = reachable_archive(archive, index).await?;
    let archive = &archive;
    let (usable, refused) = usable_backups(backup_summaries(archive).await?, &request)?;
    let mut bases: Vec<PlanBackup> = usable.iter().map(plan_backup).collect();
    let histories = inventory::timeline_histories(archive).await?;
    let growing = inventory::unfinished_segments(archive, index, spool, &histories).await?;
    let mut log = PlanLog { cluster, identity, index: Arc::clone(index), growing, gone, histories: histories.into() };
    let (mut packs, mut broken, mut first) = (ListedPacks::default(), Vec::new(), None);
    let mut plan = loop {
        let plan;
        (plan, log) = make_plan_of(archive, bases.clone(), log, request.clone()).await?;
        let Some(proved) = plan.restore() else { break first.unwrap_or(plan) };
        let lacking: BrokenBackup = match packs.prove(archive, &proved.backup).await? {
            Ok(manifest) => {
                let conf = read_backup_file(archive, &manifest, POSTGRESQL_CONF).await?;
                let auto_conf = read_backup_file(archive, &manifest, AUTO_CONF).await?.unwrap_or_default();
                let mut plan = plan;
                plan.notes.extend(server_configuration::notes_on_backup(conf.as_deref(), &auto_conf));
                break plan;
            }
            Err(lacking) => lacking,
        };
        // Another backup may do, unless this one was asked for.
        let refused = plan.without_packs(&lacking.reason());
        bases.retain(|base| base.label != lacking.label);
        if request.backup.is_some() || bases.is_empty() {
            break first.unwrap_or(refused);
        }
        broken.push(lacking.reason());
        first.get_or_insert(refused);
    };
    plan.notes.extend(unreachable);
    if plan.is_reachable() {
        plan.notes.extend(broken);
    }
    if let (true, false, plan::PlanOutcome::Unreachable(target)) =
        (usable.is_empty(), refused.is_empty(), &mut plan.outcome)
    {
        target.reason = "no backup is whole, and the options do not accept one that is not".to_owned();
    }
    let chosen = plan.restore().map(|restore| restore.backup.clone());
    plan.notes.extend(usable.iter().filter(|one| Some(&one.label) == chosen.as_ref()).filter_map(defects_note));
    plan.notes.extend(refused.iter().map(refused_backup_note));
    Ok(plan)
}

/// What plans of one cluster are made from, beside its backups.
struct PlanLog {
    cluster: String,
    identity: ArchiveIdentity,
    index: Arc<WalIndex>,
    growing: Vec<UnfinishedSegment>,
    gone: SegmentsByTimeline,
    histories: Arc<[TimelineHistory]>,
}

async fn make_plan_of(
    archive: &Arc<Archive>,
    bases: Vec<PlanBackup>,
    log: PlanLog,
    request: RestoreRequest,
) -> Result<(RestorePlan, PlanLog), RestoreError> {
    let shelf = ArchiveSegments::new(Arc::clone(archive), tokio::runtime::Handle::current(), log.identity.segment_size);
    run_blocking(move || {
        let laid_over = log.growing.iter().map(|segment| IndexEntry { digest: &segment.digest, stored: 0 });
        let view = log.index.view_without(&log.cluster, &log.gone, laid_over)?;
        let facts = WalLookup::new(view, shelf.with_unfinished(log.growing.clone()));
        let input = PlanInput { cluster: &log.cluster, bases: &bases, histories: &log.histories, facts: &facts };
        let plan = plan::make_plan(input, &request)?;
        drop(facts);
        Ok((plan, log))
    })
    .await?
}

/// The note in a plan about a repository that it does not count on.
fn unreachable_note(name: &str, error: &VaultError) -> String {
    let error = error.to_string();
    let why = error.strip_prefix(&format!("repository {name}: ")).unwrap_or(&error);
    format!("repository {name} is unreachable, and this plan does not use it; what only it has is not counted: {why}")
}

/// The summaries of all backups, oldest first ([`inventory::backup_summaries`]).
///
/// # Errors
/// The repositories could not be asked.
pub async fn backup_summaries(archive: &Archive) -> Result<Vec<BackupSummary>, RestoreError> {
    Ok(inventory::backup_summaries(archive).await?)
}

/// The backups that the request lets a plan use, and those with defects that it does not accept.
fn usable_backups(
    summaries: Vec<BackupSummary>,
    request: &RestoreRequest,
) -> Result<(Vec<BackupSummary>, Vec<BackupSummary>), RestoreError> {
    let (usable, refused): (Vec<_>, Vec<_>) =
        summaries.into_iter().partition(|summary| request.accepted.cover(&summary.defects));
    match refused.iter().find(|summary| request.backup.as_ref() == Some(&summary.label)) {
        Some(BackupSummary { label, defects, .. }) => {
            let options = AcceptedDefects::options_for(defects);
            Err(RestoreError::DefectiveBackup { label: label.clone(), defects: defects.to_string(), options })
        }
        None => Ok((usable, refused)),
    }
}

fn plan_backup(summary: &BackupSummary) -> PlanBackup {
    PlanBackup {
        label: summary.label.clone(),
        start: summary.start_lsn,
        start_timeline: summary.timeline,
        stop: summary.stop_lsn,
        stop_timeline: summary.timeline,
        started_at: PgTime::from_timestamp(summary.started_at),
        required: summary.required,
        logical_bytes: summary.logical_bytes,
    }
}

/// The note in a plan about the backup that it uses, if that is not whole.
fn defects_note(summary: &BackupSummary) -> Option<String> {
    let BackupSummary { label, defects, .. } = summary;
    (!defects.is_empty()).then(|| format!("backup {label} is not whole, and neither is what is restored: {defects}"))
}

fn refused_backup_note(summary: &BackupSummary) -> String {
    let BackupSummary { label, defects, .. } = summary;
    let options = AcceptedDefects::options_for(defects);
    format!("backup {label} is not used, because it is not whole: {defects}; {options} accepts it")
}

/// The major version of the server that a backup is of.
///
/// # Errors
/// The backup's manifest could not be read.
pub async fn backup_major_version(archive: &Archive, label: &str) -> Result<u32, RestoreError> {
    Ok(read_manifest(archive, label).await?.summary.major_version)
}

/// How a plan is carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoreOptions {
    /// Where the files go.
    pub destination: Destination,
    /// What the server does at its target.
    pub action: RecoveryTargetAction,
    /// Where `pg_wal` is, if not in the data directory.
    pub waldir: Option<PathBuf>,
    /// `restore_command` of the restored server, whole ([`recovery_settings::restore_command_line`], or
    /// [`recovery_settings::standby_restore_command_line`] of a standby).
    pub restore_command: String,
    /// Its `recovery_end_command` ([`recovery_settings::recovery_end_command_line`]).
    pub end_command: String,
    /// What the restored server is to its original.
    pub role: ServerRole,
    /// Whether its archiving stays as it was configured.
    pub keep_archiving: bool,
    /// Where `postgresql.conf` of the restored server is looked for.
    pub configuration: ConfigurationSearch,
    /// Whether the user says that no server runs in the directory, though it cannot be seen.
    pub force: bool,
}

/// What a restore put where.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct RestoredCluster {
    /// The data directory.
    pub pgdata: PathBuf,
    /// The backup.
    pub backup: String,
    /// Files placed.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them that were in their places already.
    pub reused_bytes: u64,
    /// What the server is to its original.
    pub role: ServerRole,
    /// The settings that its role needs. They stay in `postgresql.auto.conf` until the user resets them.
    pub settings: Vec<WrittenSetting>,
    /// `postgresql.conf` of the server, if it is not in the data directory.
    pub config_file: Option<PathBuf>,
    /// What else one should know: of a directory that was there before, what lies elsewhere and is as it was.
    pub notes: Vec<String>,
}

/// Carries out the restore of a plan, up to a data directory that PostgreSQL can be started on. `progress` is told
/// bytes placed and bytes in all, from time to time. Not cancel safe: what is left of an interrupted restore cannot be
/// started, and says so.
///
/// # Errors
/// [`RestoreError`].
pub async fn restore(
    archive: &Arc<Archive>,
    proved: &ProvedRestore,
    wishes: &RestoreOptions,
    progress: impl Fn(u64, u64),
) -> Result<RestoredCluster, RestoreError> {
    execute_restore(archive, proved, wishes, false, progress).await
}

/// As [`restore`], into a data directory of the same cluster that is there already: what is right in it stays. Into one
/// that is absent or empty, the same as [`restore`].
///
/// # Errors
/// [`RestoreError`].
pub async fn restore_delta(
    archive: &Arc<Archive>,
    proved: &ProvedRestore,
    wishes: &RestoreOptions,
    progress: impl Fn(u64, u64),
) -> Result<RestoredCluster, RestoreError> {
    execute_restore(archive, proved, wishes, true, progress).await
}

async fn execute_restore(
    archive: &Arc<Archive>,
    proved: &ProvedRestore,
    wishes: &RestoreOptions,
    over: bool,
    progress: impl Fn(u64, u64),
) -> Result<RestoredCluster, RestoreError> {
    let manifest = Arc::new(read_manifest(archive, &proved.backup).await?);
    let summary = manifest.summary.clone();
    let recovery = recovery_settings_of(proved, wishes);
    let (read, asked, made) = (Arc::clone(&manifest), wishes.clone(), proved.tablespaces_made.clone());
    let claimed = run_blocking(move || ClaimedDirectory::find(read, &asked, &made, over)).await??;
    let ClaimedDirectory { placement, is_there, configuration } = claimed;
    if is_there && let Err(error) = compare_directory(archive, &placement).await {
        placement.release_directory();
        return Err(error);
    }
    let (begun, made, force) = (Arc::clone(&placement), proved.tablespaces_made.clone(), wishes.force);
    let notes = run_blocking(move || {
        let notes = if is_there { Some(begun.take_over_directory(force)?) } else { None };
        begun.create_layout()?;
        if is_there {
            begun.fit_existing()?;
        }
        begun.create_tablespaces(&made)?;
        Ok::<_, RestoreError>(notes)
    })
    .await??;
    let filling = placement.write_packs(archive);
    let mut filling = std::pin::pin!(filling);
    loop {
        progress(placement.placed(), summary.logical_bytes);
        let pause = archive.vault().clock().sleep(PROGRESS_INTERVAL);
        match futures_util::future::select(&mut filling, pause).await {
            futures_util::future::Either::Left((filled, _)) => break filled?,
            futures_util::future::Either::Right(_) => {}
        }
    }
    let (last, wishes) = (Arc::clone(&placement), wishes.clone());
    let config_file = configuration.elsewhere().map(Path::to_owned);
    let written = run_blocking(move || {
        let request =
            ConfigurationRequest { role: &wishes.role, recovery: &recovery, end_command: &wishes.end_command };
        let written = write_recovery_files(&last, &manifest, &request, &configuration)?;
        Ok::<_, RestoreError>((written, wishes.role))
    });
    let (configuration, role) = written.await??;
    progress(summary.logical_bytes, summary.logical_bytes);
    Ok(RestoredCluster {
        pgdata: placement.pgdata().to_owned(),
        backup: proved.backup.clone(),
        files: summary.files,
        bytes: summary.logical_bytes,
        reused_bytes: placement.reused(),
        role,
        settings: configuration.settings,
        config_file,
        notes: notes.into_iter().flatten().chain(configuration.notes).collect(),
    })
}

/// How the server is to recover.
fn recovery_settings_of(proved: &ProvedRestore, wishes: &RestoreOptions) -> RecoverySettings {
    RecoverySettings {
        stop: proved.stop,
        timeline: proved.timeline,
        action: wishes.action,
        restore_command: wishes.restore_command.clone(),
        required: proved.required_settings,
        keep_archiving: wishes.keep_archiving,
        no_read_ahead: proved.hole_follows,
    }
}

/// Where a restore goes, checked and not touched yet.
struct ClaimedDirectory {
    placement: Arc<Placement>,
    /// Whether there is a data directory of the cluster already.
    is_there: bool,
    configuration: ConfigurationPlace,
}

impl ClaimedDirectory {
    fn find(
        manifest: Arc<Manifest>,
        wishes: &RestoreOptions,
        made: &[CreatedTablespace],
        over: bool,
    ) -> Result<ClaimedDirectory, RestoreError> {
        destination::check_created_tablespaces(made)?;
        let in_backup = manifest.entries.iter().any(|entry| entry.path == Path::new(POSTGRESQL_CONF));
        let (destination, summary) = (&wishes.destination, &manifest.summary);
        let configuration =
            ConfigurationPlace::find(&destination.pgdata, &wishes.configuration, summary.major_version, in_backup)?;
        let existing =
            if over { CheckedDestination::check_existing(destination, &manifest, wishes.force)? } else { None };
        let is_there = existing.is_some();
        let ground = match existing {
            Some(ground) => ground,
            None => CheckedDestination::check(destination, &summary.tablespaces, &manifest.entries)?,
        };
        let ground = ground.with_waldir(wishes.waldir.clone(), is_there)?;
        let placement = Arc::new(Placement::new(manifest, ground)?);
        Ok(ClaimedDirectory { placement, is_there, configuration })
    }
}

/// Reads what is in an old directory and proves that packs can be had, while the directory is still as it was.
async fn compare_directory(archive: &Arc<Archive>, placement: &Arc<Placement>) -> Result<(), RestoreError> {
    let claimed = Arc::clone(placement);
    run_blocking(move || claimed.claim_directory()).await??;
    placement.reuse_existing(archive).await?;
    Ok(placement.try_first_pack(archive).await?)
}

/// What the server finds beside the backup's files, and then the last step. Answers with what the server needs that is
/// not in its data directory.
fn write_recovery_files(
    placement: &Placement,
    manifest: &Manifest,
    request: &ConfigurationRequest<'_>,
    place: &ConfigurationPlace,
) -> Result<WrittenConfiguration, RestoreError> {
    placement.write_extra_file("backup_label", &manifest.backup_label)?;
    if let Some(map) = tablespace_map(placement, manifest)? {
        placement.write_extra_file(TablespaceMap::FILE, &map)?;
    }
    let pgdata = placement.pgdata();
    let conf = match place {
        ConfigurationPlace::Elsewhere(file) => ConfigurationText::read(file),
        ConfigurationPlace::DataDirectory => ConfigurationText::read(&pgdata.join(POSTGRESQL_CONF)),
        ConfigurationPlace::Absent => ConfigurationText::default(),
    };
    let mut notes = conf.notes(pgdata);
    if *place == ConfigurationPlace::Absent {
        notes.extend(write_minimal_configuration(placement, manifest)?);
    }
    let mut configuration = request.apply(&BackupConfiguration {
        auto_conf: &placement.read_placed_bytes(AUTO_CONF)?.unwrap_or_default(),
        postgresql_conf: Some(&conf.text),
        major: manifest.summary.major_version,
    });
    if let Some(recovery_file) = &configuration.recovery_file {
        placement.write_extra_file(RECOVERY_FILE, recovery_file.as_bytes())?;
    }
    placement.write_extra_file(AUTO_CONF, &configuration.auto_conf)?;
    placement.write_extra_file(configuration.signal, b"")?;
    placement.finish()?;
    configuration.notes.extend(notes);
    Ok(configuration)
}

/// Configuration files for a server whose own are not known here.
fn write_minimal_configuration(placement: &Placement, manifest: &Manifest) -> Result<Option<String>, RestoreError> {
    let owner = user_name_of(placement.pgdata()).unwrap_or_else(|| "postgres".to_owned());
    let mut written = Vec::new();
    for (name, text) in server_configuration::minimal_files(&owner) {
        if !manifest.entries.iter().any(|entry| entry.path == Path::new(name)) {
            placement.write_extra_file(name, text.as_bytes())?;
            written.push(name);
        }
    }
    let note = format!(
        "the backup has no {POSTGRESQL_CONF}: the original's configuration is outside its data directory, as on \
         Debian. walkeep wrote {} that set nothing and let only users of this machine in. To use another \
         configuration, give --config-file FILE",
        written.join(", ")
    );
    Ok((!written.is_empty()).then_some(note))
}

/// The name of the user that a directory belongs to.
fn user_name_of(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let owner = path.metadata().ok()?.uid();
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(owner)).then(|| name.to_owned())
    })
}
