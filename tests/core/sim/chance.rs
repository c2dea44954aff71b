//! Where everything in a run comes from: choices, drawn from a seed or given.
//!
//! A run is a function of its choices. Each belongs to somebody: to a worker, to a command, to a step of the clock. So to
//! change what one of them does leaves what the others do as it was. And the choice 0 is always the plainest there is: no
//! fault, no wait, the first of a list; whoever has no choices left takes 0. That is what lets `shrink` make a run small.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Whose choices they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whose {
    /// What the run is about, and how it ends.
    Run,
    Command(u64),
    Mishap(u64),
    Generation(u64),
    Worker(u64),
    /// The clock, at so many steps from the beginning.
    Clock(u64),
}

impl Whose {
    /// The one before it of its kind.
    pub fn before(self) -> Option<Self> {
        let (letter, number) = self.letter_and_number();
        Self::from_letter(letter, number.checked_sub(1)?)
    }

    fn letter_and_number(self) -> (char, u64) {
        match self {
            Self::Run => ('r', 0),
            Self::Command(number) => ('c', number),
            Self::Mishap(number) => ('m', number),
            Self::Generation(number) => ('g', number),
            Self::Worker(number) => ('w', number),
            Self::Clock(number) => ('t', number),
        }
    }

    fn from_letter(letter: char, number: u64) -> Option<Self> {
        Some(match letter {
            'r' => Self::Run,
            'c' => Self::Command(number),
            'm' => Self::Mishap(number),
            'g' => Self::Generation(number),
            'w' => Self::Worker(number),
            't' => Self::Clock(number),
            _ => return None,
        })
    }
}

/// All choices of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices(pub BTreeMap<Whose, Vec<u64>>);

impl Choices {
    /// Leaves out what is 0 without being said.
    pub fn trim(&mut self) {
        self.0.retain(|_, of| {
            while of.pop_if(|choice| *choice == 0).is_some() {}
            !of.is_empty()
        });
    }

    /// Reads what [`fmt::Display`] wrote.
    pub fn from_words(words: &str) -> Option<Self> {
        let one = |word: &str| {
            let mut numbers = word.get(1..)?.split('.').map(|number| u64::from_str_radix(number, 16).ok());
            let whose = Whose::from_letter(word.chars().next()?, numbers.next()??)?;
            Some((whose, numbers.collect::<Option<Vec<_>>>()?))
        };
        words.split(',').map(one).collect::<Option<_>>().map(Self)
    }
}

impl fmt::Display for Choices {
    /// Writes `r0.1.4,c0.5,w3.0.2`: whose they are, then the choices, in base 16.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (whose, choices)) in self.0.iter().enumerate() {
            let (letter, number) = whose.letter_and_number();
            write!(f, "{}{letter}{number:x}", if place == 0 { "" } else { "," })?;
            choices.iter().try_for_each(|choice| write!(f, ".{choice:x}"))?;
        }
        Ok(())
    }
}

/// The choices of one run as they are taken.
pub struct Chance {
    source: Source,
    whose: Whose,
    taken: Choices,
}

enum Source {
    /// The state of a SplitMix64, the same on every machine and for ever.
    Seed(u64),
    Given(Choices),
}

impl Chance {
    pub fn from_seed(seed: u64) -> Self {
        Self::of(Source::Seed(seed))
    }

    pub fn from_choices(choices: Choices) -> Self {
        Self::of(Source::Given(choices))
    }

    fn of(source: Source) -> Self {
        Self { source, whose: Whose::Run, taken: Choices::default() }
    }

    /// Whether the choices were given, as they are where a failure is looked at.
    pub fn is_replay(&self) -> bool {
        matches!(self.source, Source::Given(_))
    }

    /// The choices that were taken.
    pub fn into_taken(mut self) -> Choices {
        self.taken.trim();
        self.taken
    }

    /// From now on these choices are taken.
    pub fn turn_to(&mut self, whose: Whose) {
        self.whose = whose;
    }

    /// A number from 0 to `most`.
    fn up_to(&mut self, most: u64) -> u64 {
        let taken = self.taken.0.entry(self.whose).or_default();
        let choice = match &mut self.source {
            Source::Seed(state) => split_mix(state) % (most + 1),
            Source::Given(choices) => {
                let given = choices.0.get(&self.whose).and_then(|of| of.get(taken.len()));
                given.map_or(0, |choice| *choice.min(&most))
            }
        };
        taken.push(choice);
        choice
    }

    /// A number from 0 to `count - 1`.
    pub fn below(&mut self, count: u32) -> u32 {
        u32::try_from(self.up_to(u64::from(count) - 1)).expect("it is below a u32")
    }

    /// True once in so many times.
    pub fn one_in(&mut self, count: u32) -> bool {
        self.below(count) == count - 1
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let count = u32::try_from(from.len()).expect("there are few to choose from");
        from[self.below(count) as usize].clone()
    }

    /// A time up to `most`, short ones as likely as long ones, and none at all now and then.
    pub fn time(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_micros()).expect("no time is that long");
        let shrunk = most >> (2 * self.below(10));
        Duration::from_micros(self.up_to(shrunk))
    }

    /// Brings what there is into any order.
    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for place in 1..all.len() {
            let most = u32::try_from(place).expect("there are few");
            let other = place - self.below(most + 1) as usize;
            all.swap(place, other);
        }
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
