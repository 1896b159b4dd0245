//! One plan for a cluster and an instance: both to one moment.
//!
//! Both are planned before either is touched. PostgreSQL stops before the first commit that its server's clock stamped
//! later than the moment. Redis holds the commands that the receiver had by the last mark up to the moment, by the
//! clock of the receiver's machine. Redis may lack commands between that mark and the moment. Together with the offset
//! between the two clocks, this is the bound on the skew ([`super::skew`]).

use std::path::PathBuf;

use jiff::Timestamp;

use super::common_moment::{IdleInterval, MAX_AGREEMENT_ROUNDS, MomentAnswer, find_common_moment};
use super::error::JointError;
use super::skew::{ClockSkew, read_clock_at};
use crate::postgres::format::time::PgTime;
use crate::postgres::restore::plan::{ProvedRestore, RestorePlan};
use crate::postgres::restore::planner::RestorePlanner;
use crate::postgres::restore::target::RestoreRequest;
use crate::redis::archive::history::last_command::LastCommand;
use crate::redis::archive::{Archive, RedisTarget, RestoreRoute, UnreachableState};

/// What both stores are planned for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JointRequest {
    /// The moment.
    pub moment: Timestamp,
    /// Take the newest moment before it that both can reach, if one of them cannot reach it.
    pub nearest: bool,
    /// The data directory of the restore, whose free space is checked.
    pub pgdata: Option<PathBuf>,
}

/// Both stores, planned to one moment.
#[derive(Debug)]
pub struct JointPlan {
    /// The cluster.
    pub planner: RestorePlanner,
    /// The instance.
    pub instance: Archive,
    /// The moment that was asked for.
    pub asked: Timestamp,
    /// The moment that both are planned for. It differs from the one asked for only with [`JointRequest::nearest`].
    pub moment: Timestamp,
    /// The plan of each store for the moment.
    pub plans: StorePlans,
    /// How long the cluster has been idle, if only that keeps it from the moment.
    pub idle: Option<IdleInterval>,
    /// Whether both reach the moment.
    pub outcome: JointOutcome,
}

/// The plan of each store for one moment.
#[derive(Debug)]
pub struct StorePlans {
    /// The plan of the cluster.
    pub postgres: RestorePlan,
    /// The plan of the instance.
    pub redis: Result<RestoreRoute, UnreachableState>,
}

/// What both plans come to.
#[derive(Debug)]
pub enum JointOutcome {
    /// Both reach the moment.
    Reached {
        /// The last command that Redis replays.
        last_command: Option<LastCommand>,
        /// The bound on the skew.
        skew: Box<ClockSkew>,
    },
    /// Both were asked for several moments, and for each of them one store goes to an earlier moment.
    NotAgreed,
    /// One of them does not reach the moment, or neither does.
    Unreachable,
}

/// What is restored if both stores reach the moment.
#[derive(Clone, Copy, Debug)]
pub struct JointRestores<'p> {
    /// The restore of the cluster.
    pub postgres: &'p ProvedRestore,
    /// The restore of the instance.
    pub redis: &'p RestoreRoute,
}

impl JointPlan {
    /// Plans a cluster and an instance.
    ///
    /// # Errors
    /// [`JointError`]. A moment that cannot be reached is a plan too.
    pub async fn make(
        planner: RestorePlanner,
        instance: Archive,
        request: &JointRequest,
    ) -> Result<JointPlan, JointError> {
        let asked = request.moment;
        let mut moment = asked;
        let mut plans = StorePlans::make(&planner, &instance, request, (asked, false)).await?;
        let idle = plans.idle_interval(asked);
        let mut agreed = true;
        if let (true, None, Some(nearest)) = (request.nearest, plans.restores(), plans.nearest_common_moment(asked)) {
            let common = find_common_moment(nearest, async |next| {
                moment = next;
                plans = StorePlans::make(&planner, &instance, request, (next, true)).await?;
                Ok::<_, JointError>([MomentAnswer::from_plan(&plans.postgres, next), plans.redis_answer()])
            });
            agreed = common.await?.is_some();
        }
        let outcome = match plans.restores() {
            Some(JointRestores { postgres, redis }) if agreed => {
                let last_command = instance.find_last_command(redis).await?;
                let archive = planner.archive();
                let reading = read_clock_at(archive, postgres, moment).await;
                let names = (archive.cluster().as_str(), instance.name().as_str());
                JointOutcome::Reached { last_command, skew: Box::new(ClockSkew::new(redis, moment, &reading, names)) }
            }
            _ if agreed => JointOutcome::Unreachable,
            _ => JointOutcome::NotAgreed,
        };
        Ok(JointPlan { planner, instance, asked, moment, plans, idle, outcome })
    }

    /// The name of the cluster.
    #[must_use]
    pub fn cluster_name(&self) -> &str {
        self.planner.archive().cluster().as_str()
    }

    /// The name of the instance.
    #[must_use]
    pub fn instance_name(&self) -> &str {
        self.instance.name().as_str()
    }

    /// Both restores; `None` if one of the stores does not reach the moment.
    #[must_use]
    pub fn restores(&self) -> Option<JointRestores<'_>> {
        match self.outcome {
            JointOutcome::Reached { .. } => self.plans.restores(),
            JointOutcome::NotAgreed | JointOutcome::Unreachable => None,
        }
    }

    /// The last command that Redis replays, if both reach the moment.
    #[must_use]
    pub const fn last_command(&self) -> Option<&LastCommand> {
        match &self.outcome {
            JointOutcome::Reached { last_command, .. } => last_command.as_ref(),
            JointOutcome::NotAgreed | JointOutcome::Unreachable => None,
        }
    }

    /// The bound on the skew, if both reach the moment.
    #[must_use]
    pub const fn skew(&self) -> Option<&ClockSkew> {
        match &self.outcome {
            JointOutcome::Reached { skew, .. } => Some(skew),
            JointOutcome::NotAgreed | JointOutcome::Unreachable => None,
        }
    }

    /// The newest moment up to the planned one that both reach, as far as each plan shows.
    #[must_use]
    pub fn nearest_common_moment(&self) -> Option<Timestamp> {
        match self.outcome {
            JointOutcome::Reached { .. } | JointOutcome::Unreachable => self.plans.nearest_common_moment(self.moment),
            JointOutcome::NotAgreed => None,
        }
    }

    /// Which of the two cannot reach the moment, and why; `None` if both can.
    #[must_use]
    pub fn unreachable_reason(&self) -> Option<String> {
        if let JointOutcome::Reached { .. } = self.outcome {
            return None;
        }
        let (main, cache) = (self.cluster_name(), self.instance_name());
        let StorePlans { postgres, redis } = &self.plans;
        Some(match (postgres.is_reachable(), redis) {
            (true, Ok(_)) => format!(
                "there is no moment to which both go: of {MAX_AGREEMENT_ROUNDS} that both were asked for, each was one \
                 to which {main} or {cache} can only be brought by going further back; restore each by itself"
            ),
            (true, Err(not)) => format!("{main} can be restored there, {cache} cannot: {}", not.reason),
            (false, Ok(_)) => format!("{cache} can be restored there, {main} cannot: {}", postgres.reason()),
            (false, Err(not)) => {
                format!("neither can be restored there. {main}: {}; {cache}: {}", postgres.reason(), not.reason)
            }
        })
    }
}

impl StorePlans {
    async fn make(
        planner: &RestorePlanner,
        instance: &Archive,
        request: &JointRequest,
        (moment, nearest): (Timestamp, bool),
    ) -> Result<StorePlans, JointError> {
        let postgres = plan_postgres(planner, request, moment, nearest).await?;
        Ok(StorePlans { postgres, redis: plan_redis(instance, moment).await? })
    }

    fn restores(&self) -> Option<JointRestores<'_>> {
        Some(JointRestores { postgres: self.postgres.restore()?, redis: self.redis.as_ref().ok()? })
    }

    /// The moment that Redis reaches, if it is asked for this one.
    fn redis_answer(&self) -> MomentAnswer {
        match &self.redis {
            Ok(_) => MomentAnswer::Reached,
            Err(not) => not.nearest_before.map_or(MomentAnswer::Unreachable, MomentAnswer::ReachedEarlier),
        }
    }

    /// The newest moment that Redis reaches up to the one planned for.
    fn nearest_redis_moment(&self, planned: Timestamp) -> Option<Timestamp> {
        match &self.redis {
            Ok(_) => Some(planned),
            Err(not) => not.nearest_before,
        }
    }

    /// The time since the last commit, if only PostgreSQL does not reach the moment, and only because nothing was
    /// committed since.
    fn idle_interval(&self, asked: Timestamp) -> Option<IdleInterval> {
        IdleInterval::new(self.postgres.idle_since()?.to_timestamp()?, self.nearest_redis_moment(asked)?)
    }

    fn nearest_common_moment(&self, planned: Timestamp) -> Option<Timestamp> {
        let postgres = if self.postgres.is_reachable() {
            planned
        } else {
            self.postgres.nearest_before()?.time?.to_timestamp()?
        };
        Some(postgres.min(self.nearest_redis_moment(planned)?))
    }
}

async fn plan_postgres(
    planner: &RestorePlanner,
    request: &JointRequest,
    moment: Timestamp,
    nearest: bool,
) -> Result<RestorePlan, JointError> {
    let cluster = planner.archive().cluster().to_string();
    let target = RestoreRequest::at_time(PgTime::from_timestamp(moment)).or_nearest(nearest);
    let failed = |source| JointError::PlanPostgres { cluster: cluster.clone(), source: Box::new(source) };
    let plan = planner.plan(target).await.map_err(failed)?;
    match &request.pgdata {
        Some(pgdata) => planner.check_destination(plan, pgdata).await.map_err(failed),
        None => Ok(plan),
    }
}

async fn plan_redis(
    instance: &Archive,
    moment: Timestamp,
) -> Result<Result<RestoreRoute, UnreachableState>, JointError> {
    let route = instance.resolve_target(RedisTarget::Time(moment), None).await;
    route.map_err(|source| JointError::PlanRedis { instance: instance.name().to_string(), source })
}
