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
use crate::postgres::restore::plan::RestorePlan;
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
    /// The plan of the cluster.
    pub postgres: RestorePlan,
    /// The plan of the instance.
    pub redis: Result<RestoreRoute, UnreachableState>,
    /// Whether both plans are for one moment.
    pub moment_agreed: bool,
    /// How long the cluster has been idle, if only that keeps it from the moment.
    pub idle: Option<IdleInterval>,
    /// The last command that Redis replays.
    pub last_command: Option<LastCommand>,
    /// The bound on the skew, if both reach the moment.
    pub skew: Option<ClockSkew>,
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
        let postgres = plan_postgres(&planner, request, asked, false).await?;
        let redis = plan_redis(&instance, asked).await?;
        let mut both = JointPlan {
            planner,
            instance,
            asked,
            moment: asked,
            postgres,
            redis,
            moment_agreed: true,
            idle: None,
            last_command: None,
            skew: None,
        };
        both.idle = both.idle_interval();
        if let (true, false, Some(nearest)) = (request.nearest, both.is_reachable(), both.nearest_common_moment()) {
            let common = find_common_moment(nearest, async |moment| {
                both.moment = moment;
                both.postgres = plan_postgres(&both.planner, request, moment, true).await?;
                both.redis = plan_redis(&both.instance, moment).await?;
                Ok::<_, JointError>([MomentAnswer::from_plan(&both.postgres, moment), both.redis_answer()])
            });
            let common = common.await?;
            both.moment_agreed = common.is_some();
        }
        if let (true, Ok(route)) = (both.is_reachable(), &both.redis) {
            both.last_command = both.instance.find_last_command(route).await?;
            let reading = read_clock_at(both.planner.archive(), &both.postgres, both.moment).await;
            both.skew = Some(ClockSkew::new(route, both.moment, &reading, (both.cluster_name(), both.instance_name())));
        }
        Ok(both)
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

    /// Whether both reach the moment.
    #[must_use]
    pub const fn is_reachable(&self) -> bool {
        self.moment_agreed && self.postgres.reachable && self.redis.is_ok()
    }

    /// The moment that Redis reaches, if it is asked for this one.
    fn redis_answer(&self) -> MomentAnswer {
        match &self.redis {
            Ok(_) => MomentAnswer::Reached,
            Err(not) => not.nearest_before.map_or(MomentAnswer::Unreachable, MomentAnswer::ReachedEarlier),
        }
    }

    /// The time since the last commit, if only PostgreSQL does not reach the moment, and only because nothing was
    /// committed since.
    fn idle_interval(&self) -> Option<IdleInterval> {
        let until = match &self.redis {
            Ok(_) => Some(self.asked),
            Err(not) => not.nearest_before,
        };
        IdleInterval::new(self.postgres.idle_since()?.to_timestamp()?, until?)
    }

    /// The newest moment up to the planned one that both reach, as far as each plan shows.
    #[must_use]
    pub fn nearest_common_moment(&self) -> Option<Timestamp> {
        if !self.moment_agreed {
            return None;
        }
        let postgres = match (self.postgres.reachable, &self.postgres.nearest_before) {
            (true, _) => Some(self.moment),
            (false, point) => point.as_ref().and_then(|point| point.time?.to_timestamp()),
        };
        let redis = match &self.redis {
            Ok(_) => Some(self.moment),
            Err(not) => not.nearest_before,
        };
        Some(postgres?.min(redis?))
    }

    /// Which of the two cannot reach the moment, and why; `None` if both can.
    #[must_use]
    pub fn unreachable_reason(&self) -> Option<String> {
        let (main, cache) = (self.cluster_name(), self.instance_name());
        match (self.postgres.reachable, &self.redis) {
            (true, Ok(_)) if self.moment_agreed => None,
            (true, Ok(_)) => Some(format!(
                "there is no moment to which both go: of {MAX_AGREEMENT_ROUNDS} that both were asked for, each was one \
                 to which {main} or {cache} can only be brought by going further back; restore each by itself"
            )),
            (true, Err(not)) => Some(format!("{main} can be restored there, {cache} cannot: {}", not.reason)),
            (false, Ok(_)) => Some(format!("{cache} can be restored there, {main} cannot: {}", self.postgres.reason)),
            (false, Err(not)) => Some(format!(
                "neither can be restored there. {main}: {}; {cache}: {}",
                self.postgres.reason, not.reason
            )),
        }
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
    let plan =
        planner.plan(target).await.map_err(|source| JointError::PlanPostgres { cluster, source: Box::new(source) })?;
    match &request.pgdata {
        Some(pgdata) => Ok(planner.check_destination(plan, pgdata)?),
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
