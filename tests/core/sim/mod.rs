//! The core under chance: a seed makes a world, lives through it, and every promise is checked after each event.
//!
//! First come faults, then they stop and everything must become well: the newest good release at full strength, all
//! requests answered, nobody left over; then the service ends. `SIM_SEEDS=1000000` tries so many seeds, `SIM_FROM=5000`
//! begins with another one than 0. A failure names the seeds, one for each kind, and shows the shortest of them;
//! `SIM_SEED=17` shows the whole of one. What a seed found stands in the stories, under the name of the rule.

mod chance;
mod checker;
mod release;
mod world;

use std::collections::BTreeMap;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use world::World;

/// How many seeds are tried where nobody asks for more.
const SEEDS: u64 = 3_000;

/// How many seeds may fail before the search ends, in each thread.
const FAILURES: usize = 25;

/// How much of a failure's trace is shown.
const SHOWN: usize = 120;

struct Failure {
    seed: u64,
    events: u64,
    why: String,
}

/// Lives through a seed.
fn run(world: &mut World) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| world.live())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(format!("the core panicked: {}", text.unwrap_or_default()))
    })
}

/// Lives through a seed with a record of it, and returns the last lines.
fn trace(seed: u64, shown: usize) -> String {
    let mut world = World::new(seed, true);
    let result = run(&mut world);
    let lines = world.trace.take().unwrap_or_default();
    let from = lines.len().saturating_sub(shown);
    format!("{}\n{}\nseed {seed}: {result:?}", lines[from..].join("\n"), world.state())
}

/// Tries the seeds; returns how many events there were, and which seeds failed.
fn search(seeds: impl Iterator<Item = u64>) -> (u64, Vec<Failure>) {
    let (mut events, mut failures) = (0, Vec::new());
    for seed in seeds {
        let mut world = World::new(seed, false);
        let result = run(&mut world);
        events += world.events;
        failures.extend(result.err().map(|why| Failure { seed, events: world.events, why }));
        if failures.len() >= FAILURES {
            break;
        }
    }
    (events, failures)
}

/// Says which seeds failed, one line for each kind of failure, and how the shortest went.
fn report(failures: &[Failure]) -> String {
    let mut kinds = BTreeMap::<String, Vec<&Failure>>::new();
    for failure in failures {
        let kind = failure.why.chars().filter(|character| !character.is_ascii_digit()).take(60).collect();
        kinds.entry(kind).or_default().push(failure);
    }
    let lines = kinds.values().map(|of| {
        let seeds: Vec<_> = of.iter().map(|failure| failure.seed.to_string()).collect();
        format!("{}\n    seeds {}", of[0].why, seeds.join(" "))
    });
    let lines: Vec<_> = lines.collect();
    let shortest = failures.iter().min_by_key(|failure| failure.events);
    let trace = shortest.map(|failure| trace(failure.seed, SHOWN)).unwrap_or_default();
    format!("{trace}\n{}", lines.join("\n"))
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[test]
fn whatever_happens_the_promises_hold() {
    if let Some(seed) = number("SIM_SEED") {
        println!("{}", trace(seed, usize::MAX));
        return;
    }
    let first = number("SIM_FROM").unwrap_or(0);
    let seeds = first..first + number("SIM_SEEDS").unwrap_or(SEEDS);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let found: Vec<_> = thread::scope(|scope| {
        let start = |thread: usize| {
            let mine = seeds.clone().skip(thread).step_by(threads);
            scope.spawn(move || search(mine))
        };
        let searches: Vec<_> = (0..threads).map(start).collect();
        searches.into_iter().map(|search| search.join().expect("a search does not panic")).collect()
    });
    let events: u64 = found.iter().map(|(events, _)| events).sum();
    let failures: Vec<_> = found.into_iter().flat_map(|(_, failures)| failures).collect();
    println!("seeds {seeds:?}, {events} events, {} failures", failures.len());
    assert!(failures.is_empty(), "{}", report(&failures));
}

#[test]
fn a_seed_is_the_same_each_time() {
    for seed in 0..20 {
        assert_eq!(trace(seed, usize::MAX), trace(seed, usize::MAX));
    }
}
