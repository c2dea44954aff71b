//! The core under chance: a seed makes a world, lives through it, and every promise is checked after each event.
//!
//! First come faults, then they stop and everything must become well: the newest good release at full strength, all
//! requests answered, nobody left over; then the service ends. `SIM_SEEDS=1000000` tries so many seeds, `SIM_SECONDS=180`
//! as many as that time allows, and `SIM_FROM=5000` begins with another one than 0. A failure names the seeds, one line for
//! each kind, and shows the shortest of them made as small as can be; `SIM_SEED=17` shows the whole of one,
//! `SIM_CHOICES=r0.1,w3.2` the run of these choices. What a seed found stands in the stories, under the name of the rule.

mod chance;
pub mod checker;
mod faults;
mod kernel;
mod release;
mod restart;
mod shrink;
mod world;

use std::collections::BTreeMap;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use chance::{Chance, Choices};
use shrink::shrink;
use world::World;

/// How many seeds are tried where nobody asks for more.
const SEEDS: u64 = 1_500;

/// How many seeds may fail before the search ends, in each thread.
const FAILURES: usize = 25;

/// How a run failed.
#[derive(Clone)]
pub struct Failure {
    pub why: String,
    events: u64,
}

impl Failure {
    /// What went wrong, without whom it hit: failures of one kind are one.
    fn kind(&self) -> String {
        let words = self.why.split([':', '(', '{']).next().unwrap_or_default();
        words.chars().filter(|character| !character.is_ascii_digit()).collect()
    }
}

/// Lives through a world.
fn run(world: &mut World) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| world.live())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(format!("the core panicked: {}", text.unwrap_or_default()))
    })
}

/// Lives through what the choices make; returns how it ended, and which choices were taken.
fn live(chance: Chance) -> (Result<u64, Failure>, Choices) {
    let mut world = World::new(chance, false);
    let result = run(&mut world);
    let events = world.events;
    (result.map(|()| events).map_err(|why| Failure { why, events }), world.chance.into_taken())
}

/// Lives through what the choices make with a record of it in words.
fn trace(chance: Chance) -> String {
    let mut world = World::new(chance, true);
    let result = run(&mut world);
    let lines = world.trace.take().unwrap_or_default();
    format!("{}\n{}\n{result:?}", lines.join("\n"), world.state())
}

/// Tries the seeds until so many have failed; returns how many events there were, and which seeds failed.
pub fn search(seeds: impl Iterator<Item = u64>, most_failures: usize) -> (u64, Vec<(u64, Failure)>) {
    let (mut events, mut failures) = (0, Vec::new());
    for seed in seeds {
        match live(Chance::from_seed(seed)).0 {
            Ok(lived) => events += lived,
            Err(failure) => {
                events += failure.events;
                failures.push((seed, failure));
            }
        }
        if failures.len() >= most_failures {
            break;
        }
    }
    (events, failures)
}

/// Shows the smallest failure of the seed's kind, and how to see it again.
fn show(seed: u64) -> String {
    let (_, choices) = live(Chance::from_seed(seed));
    let Some(choices) = shrink(choices) else {
        return format!("{}\nseed {seed} fails only as a whole", trace(Chance::from_seed(seed)));
    };
    let words = choices.to_string();
    format!(
        "{}\nThis is seed {seed} made small: SIM_CHOICES={words} shows it again, SIM_SEED={seed} the whole.",
        trace(Chance::from_choices(choices))
    )
}

/// Says which seeds failed, one line for each kind of failure, and how the shortest went.
fn report(failures: &[(u64, Failure)]) -> String {
    let mut kinds = BTreeMap::<String, Vec<&(u64, Failure)>>::new();
    for failure in failures {
        kinds.entry(failure.1.kind()).or_default().push(failure);
    }
    let lines = kinds.values().map(|of| {
        let seeds: Vec<_> = of.iter().map(|(seed, _)| seed.to_string()).collect();
        format!("{}\n    seeds {}", of[0].1.why, seeds.join(" "))
    });
    let lines: Vec<_> = lines.collect();
    let shortest = failures.iter().min_by_key(|(_, failure)| failure.events);
    let shown = shortest.map(|(seed, _)| show(*seed)).unwrap_or_default();
    format!("\n{shown}\n{}", lines.join("\n"))
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[test]
fn whatever_happens_the_promises_hold() {
    if let Ok(words) = env::var("SIM_CHOICES") {
        let choices = Choices::from_words(&words).expect("SIM_CHOICES is as a failure wrote it");
        println!("{}", trace(Chance::from_choices(choices)));
        return;
    }
    if let Some(seed) = number("SIM_SEED") {
        println!("{}", trace(Chance::from_seed(seed)));
        return;
    }
    let first = number("SIM_FROM").unwrap_or(0);
    let until = number("SIM_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let most = number("SIM_SEEDS").unwrap_or(if until.is_some() { u64::MAX - first } else { SEEDS });
    let seeds = first..first + most;
    let tried = AtomicU64::new(0);
    println!("from seed {first}");
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let found: Vec<_> = thread::scope(|scope| {
        let start = |thread: usize| {
            let mine = seeds.clone().skip(thread).step_by(threads);
            let mine = mine.take_while(move |_| until.is_none_or(|until| Instant::now() < until));
            let tried = &tried;
            let count = move |_: &u64| _ = tried.fetch_add(1, Ordering::Relaxed);
            scope.spawn(move || search(mine.inspect(count), FAILURES))
        };
        let searches: Vec<_> = (0..threads).map(start).collect();
        searches.into_iter().map(|search| search.join().expect("a search does not panic")).collect()
    });
    let events: u64 = found.iter().map(|(events, _)| events).sum();
    let failures: Vec<_> = found.into_iter().flat_map(|(_, failures)| failures).collect();
    println!("{} seeds from {first}, {events} events, {} failures", tried.into_inner(), failures.len());
    assert!(failures.is_empty(), "{}", report(&failures));
}

#[test]
fn a_seed_is_the_same_each_time() {
    for seed in 0..20 {
        assert_eq!(trace(Chance::from_seed(seed)), trace(Chance::from_seed(seed)));
    }
}

#[test]
fn choices_that_are_written_down_are_the_run() {
    for seed in 0..20 {
        let (result, choices) = live(Chance::from_seed(seed));
        let read = Choices::from_words(&choices.to_string()).expect("it was written just now");
        let (again, same) = live(Chance::from_choices(read));
        assert_eq!(result.map_err(|failure| failure.why), again.map_err(|failure| failure.why), "{seed}");
        assert_eq!(choices, same, "{seed}");
    }
}
