//! The story that the demo tells, and its promises.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::event::{Event, Summary};
use super::failure::Failure;
use super::load::Load;
use super::manager::Manager;
use super::show::Show;
use super::stage::{Release, Stage};

/// Clients of each kind.
const CLIENTS: u32 = 8;

/// How long the load runs before something happens to the service.
const CALM: Duration = Duration::from_millis(1500);

/// How many answers show that a release still serves.
const ENOUGH: u64 = 200;

/// How long they may take.
const ENOUGH_LIMIT: Duration = Duration::from_secs(10);

/// Tells the story, and fills in the summary as far as it gets.
///
/// # Errors
///
/// Whatever keeps it from ending well, at the point where it does. Failed requests do not: they are counted by the load,
/// and are for the caller to judge.
pub async fn tell(
    stage: &Stage,
    manager: &mut Manager,
    load: &Load,
    show: &Show<impl std::io::Write>,
    summary: &mut Summary,
) -> Result<(), Failure> {
    let started = Instant::now();
    let status = manager.ready().await?;
    show.tell(&Event::Serving {
        release: Release::FIRST.number,
        listen: stage.listen,
        status: &status,
        took_ms: started.elapsed().into(),
    });

    let clients = load.start(CLIENTS, CLIENTS);
    show.tell(&Event::Load { one_request_each: CLIENTS, keep_alive: CLIENTS });
    sleep(CALM).await;

    swap(stage, manager, load, show, summary).await?;
    answers_from_now(load, Release::GOOD).await?;
    sleep(CALM).await;

    fail(stage, manager, show, summary).await?;
    let answers = answers_from_now(load, Release::GOOD).await?;
    show.tell(&Event::StillServing { release: Release::GOOD.number, answers });

    clients.stop().await;
    let asked = Instant::now();
    let status = manager.stop().await?;
    if !status.success() {
        return Err(Failure::Broken(format!("the manager ended with {status}")));
    }
    show.tell(&Event::Stopped { took_ms: asked.elapsed().into() });
    Ok(())
}

/// Brings the good release.
async fn swap(
    stage: &Stage,
    manager: &mut Manager,
    load: &Load,
    show: &Show<impl std::io::Write>,
    summary: &mut Summary,
) -> Result<(), Failure> {
    let Release { number: release, never_ready } = Release::GOOD;
    stage.write(Release::GOOD)?;
    load.expect_up_to(release);
    show.tell(&Event::Upgrading { release, never_ready });
    let upgrade = manager.upgrade().await?;
    if upgrade.failed {
        return Err(Failure::Broken(format!("release {release} did not take over: {}", upgrade.status)));
    }
    summary.swap_ms = Some(upgrade.took.into());
    show.tell(&Event::Swapped { release, status: &upgrade.status, took_ms: upgrade.took.into() });
    Ok(())
}

/// Brings the bad release, which no client may ever see.
async fn fail(
    stage: &Stage,
    manager: &mut Manager,
    show: &Show<impl std::io::Write>,
    summary: &mut Summary,
) -> Result<(), Failure> {
    let Release { number: release, never_ready } = Release::BAD;
    stage.write(Release::BAD)?;
    show.tell(&Event::Upgrading { release, never_ready });
    let upgrade = manager.upgrade().await?;
    if !upgrade.failed {
        return Err(Failure::Broken(format!("release {release} was not rolled back: {}", upgrade.status)));
    }
    let reason = reason(&upgrade.status);
    summary.rolled_back = Some(reason.to_owned());
    show.tell(&Event::RolledBack { release, reason, took_ms: upgrade.took.into() });
    Ok(())
}

/// Waits until `release` has given enough further answers, and returns how many.
async fn answers_from_now(load: &Load, release: Release) -> Result<u64, Failure> {
    let before = load.answered_by(release.number);
    let enough = async {
        loop {
            let answers = load.answered_by(release.number) - before;
            if answers >= ENOUGH {
                return answers;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(ENOUGH_LIMIT, enough)
        .await
        .map_err(|_| Failure::Awaited { awaited: "answers from release 2", bound: ENOUGH_LIMIT })
}

/// Returns the part of a status that tells of the failed upgrade: "generation 2: 4 of 4 ready; upgrade to generation 3
/// rolled back: …".
fn reason(status: &str) -> &str {
    status.split_once("; ").map_or(status, |(_, verdict)| verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_what_follows_the_state() {
        assert_eq!(
            reason("generation 2: 4 of 4 ready; upgrade to generation 3 rolled back: exited; not ready"),
            "upgrade to generation 3 rolled back: exited; not ready"
        );
        assert_eq!(reason("upgrade refused"), "upgrade refused");
    }
}
