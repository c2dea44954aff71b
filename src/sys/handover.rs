#![expect(unsafe_code, reason = "descriptors are taken over by number")]
//! What a process hands over to the program that it becomes by execve(2): plain data, and descriptors by their numbers.
//!
//! A type that implements [`HandOver`] is taken apart without being changed, as execve(2) may fail, and put together again
//! by the other side. [`hand_over!`](crate::sys::handover::hand_over) writes that for a struct whose fields can all be handed
//! over: it names each field, so none is forgotten.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::num::ParseIntError;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::str::FromStr;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A descriptor's number, which stays the same over execve(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Number(RawFd);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Number {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

/// What is handed over.
pub trait HandOver: Sized {
    /// It as plain data.
    type State: Serialize + DeserializeOwned;

    /// Writes it down, and its descriptors into `luggage`.
    fn pack(&self, luggage: &mut Luggage) -> Self::State;

    /// Puts it together again.
    ///
    /// # Errors
    ///
    /// A descriptor is not there, or the kernel refuses something.
    fn unpack(state: Self::State, luggage: &mut Unpacked) -> io::Result<Self>;
}

/// The descriptors that are to outlive execve(2).
#[derive(Debug, Default)]
pub struct Luggage(Vec<Number>);

impl Luggage {
    /// Adds a descriptor, which must stay open until execve(2).
    pub fn put(&mut self, fd: impl AsFd) -> Number {
        let number = Number(fd.as_fd().as_raw_fd());
        self.0.push(number);
        number
    }

    /// Returns all numbers.
    pub fn numbers(&self) -> &[Number] {
        &self.0
    }

    /// Has execve(2) close the descriptors, or leave them open.
    ///
    /// # Errors
    ///
    /// Those of fcntl(2).
    pub fn close_on_execute(&self, close: bool) -> io::Result<()> {
        self.0.iter().try_for_each(|number| set_close_on_execute(*number, close))
    }
}

/// The descriptors that have come over execve(2); those that nobody takes are closed.
#[derive(Debug)]
pub struct Unpacked(BTreeMap<Number, OwnedFd>);

impl Unpacked {
    /// Takes over the descriptors that the program which this process was before has left open for it.
    ///
    /// To be called once, with the numbers as that program wrote them down, before any descriptor is opened.
    ///
    /// # Errors
    ///
    /// One of them is not open, is named twice, or is a standard stream.
    pub fn take_over(numbers: &[Number]) -> io::Result<Self> {
        let mut taken = BTreeMap::new();
        for number in numbers {
            if number.0 <= libc::STDERR_FILENO || taken.contains_key(number) {
                return Err(io::Error::other(format!("descriptor {} cannot be taken over", number.0)));
            }
            set_close_on_execute(*number, true)?;
            // SAFETY: it is open, as was just seen; by contract it was left for us, and nobody else in here owns it.
            taken.insert(*number, unsafe { OwnedFd::from_raw_fd(number.0) });
        }
        Ok(Self(taken))
    }

    /// Gives out a descriptor, once.
    ///
    /// # Errors
    ///
    /// `NotFound` for one that was not handed over, or given out already.
    pub fn take(&mut self, number: Number) -> io::Result<OwnedFd> {
        let missing = || {
            io::Error::new(io::ErrorKind::NotFound, format!("descriptor {} was not handed over", number.0))
        };
        self.0.remove(&number).ok_or_else(missing)
    }
}

fn set_close_on_execute(number: Number, close: bool) -> io::Result<()> {
    let flags = if close { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
    if number.0 < 0 {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: borrowed for this call alone; where it is not open the kernel says EBADF.
    let fd = unsafe { BorrowedFd::borrow_raw(number.0) };
    fcntl(fd, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// Implements [`HandOver`] for types that are plain data themselves.
macro_rules! plain {
    ($($type:ty),* $(,)?) => {$(
        impl $crate::sys::handover::HandOver for $type {
            type State = Self;

            fn pack(&self, _: &mut $crate::sys::handover::Luggage) -> Self {
                self.clone()
            }

            fn unpack(state: Self, _: &mut $crate::sys::handover::Unpacked) -> std::io::Result<Self> {
                Ok(state)
            }
        }
    )*};
}

/// Implements [`HandOver`] for a struct, by all of its fields, with a second struct of the name given that is its state.
macro_rules! hand_over {
    ($type:ident as $state:ident { $($field:ident: $of:ty),* $(,)? }) => {
        #[doc = concat!("[`", stringify!($type), "`] as plain data.")]
        #[derive(Debug, serde::Serialize, serde::Deserialize)]
        pub struct $state {
            $(#[doc = "As in the type itself."] pub $field: <$of as $crate::sys::handover::HandOver>::State,)*
        }

        impl $crate::sys::handover::HandOver for $type {
            type State = $state;

            fn pack(&self, luggage: &mut $crate::sys::handover::Luggage) -> $state {
                let Self { $($field),* } = self;
                $state { $($field: $crate::sys::handover::HandOver::pack($field, luggage),)* }
            }

            fn unpack(
                state: $state,
                luggage: &mut $crate::sys::handover::Unpacked,
            ) -> std::io::Result<Self> {
                $(let $field = $crate::sys::handover::HandOver::unpack(state.$field, luggage)?;)*
                Ok(Self { $($field),* })
            }
        }
    };
}

pub(crate) use {hand_over, plain};

plain!(bool, u8, i32, u32, u64, usize, String, BTreeSet<String>, SocketAddr);

/// A path as plain data.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PathState(#[serde(with = "crate::path_text")] PathBuf);

impl HandOver for PathBuf {
    type State = PathState;

    fn pack(&self, _: &mut Luggage) -> PathState {
        PathState(self.clone())
    }

    fn unpack(PathState(path): PathState, _: &mut Unpacked) -> io::Result<Self> {
        Ok(path)
    }
}

impl HandOver for Pid {
    type State = i32;

    fn pack(&self, _: &mut Luggage) -> i32 {
        self.as_raw()
    }

    fn unpack(state: i32, _: &mut Unpacked) -> io::Result<Self> {
        Ok(Self::from_raw(state))
    }
}

macro_rules! descriptor {
    ($($type:ty),*) => {$(
        impl HandOver for $type {
            type State = Number;

            fn pack(&self, luggage: &mut Luggage) -> Number {
                luggage.put(self)
            }

            fn unpack(number: Number, luggage: &mut Unpacked) -> io::Result<Self> {
                Ok(luggage.take(number)?.into())
            }
        }
    )*};
}

descriptor!(OwnedFd, File);

impl<T: HandOver> HandOver for Option<T> {
    type State = Option<T::State>;

    fn pack(&self, luggage: &mut Luggage) -> Self::State {
        self.as_ref().map(|one| one.pack(luggage))
    }

    fn unpack(state: Self::State, luggage: &mut Unpacked) -> io::Result<Self> {
        state.map(|one| T::unpack(one, luggage)).transpose()
    }
}

impl<A: HandOver, B: HandOver> HandOver for (A, B) {
    type State = (A::State, B::State);

    fn pack(&self, luggage: &mut Luggage) -> Self::State {
        (self.0.pack(luggage), self.1.pack(luggage))
    }

    fn unpack((a, b): Self::State, luggage: &mut Unpacked) -> io::Result<Self> {
        Ok((A::unpack(a, luggage)?, B::unpack(b, luggage)?))
    }
}

macro_rules! sequence {
    ($($type:ident),*) => {$(
        impl<T: HandOver> HandOver for $type<T> {
            type State = Vec<T::State>;

            fn pack(&self, luggage: &mut Luggage) -> Self::State {
                self.iter().map(|one| one.pack(luggage)).collect()
            }

            fn unpack(state: Self::State, luggage: &mut Unpacked) -> io::Result<Self> {
                state.into_iter().map(|one| T::unpack(one, luggage)).collect()
            }
        }
    )*};
}

sequence!(Vec, VecDeque);

/// As pairs, as not every key can be one in JSON.
impl<K: HandOver + Ord, V: HandOver> HandOver for BTreeMap<K, V> {
    type State = Vec<(K::State, V::State)>;

    fn pack(&self, luggage: &mut Luggage) -> Self::State {
        self.iter().map(|(key, value)| (key.pack(luggage), value.pack(luggage))).collect()
    }

    fn unpack(state: Self::State, luggage: &mut Unpacked) -> io::Result<Self> {
        state.into_iter().map(|pair| <(K, V)>::unpack(pair, luggage)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::super::fork::tests::isolated;
    use super::*;

    struct Pair {
        name: String,
        held: Option<OwnedFd>,
    }

    hand_over!(Pair as PairState { name: String, held: Option<OwnedFd> });

    #[test]
    fn what_is_packed_comes_back_with_its_descriptors_once() {
        isolated(|| {
            let (reader, _writer) = io::pipe().unwrap();
            let mut luggage = Luggage::default();
            let pair = Pair { name: "one".into(), held: Some(reader.into()) };
            let text = serde_json::to_string(&pair.pack(&mut luggage)).unwrap();
            luggage.close_on_execute(false).unwrap();
            // What execve(2) does: the owner is gone, the descriptor stays.
            let number = pair.held.unwrap().into_raw_fd();
            let mut unpacked = Unpacked::take_over(luggage.numbers()).unwrap();
            let pair = Pair::unpack(serde_json::from_str(&text).unwrap(), &mut unpacked).unwrap();
            assert_eq!(pair.name, "one");
            let held = pair.held.unwrap();
            assert_eq!(held.as_raw_fd(), number);
            assert_eq!(fcntl(&held, FcntlArg::F_GETFD).unwrap(), libc::FD_CLOEXEC);
            assert_eq!(unpacked.take(Number(number)).unwrap_err().kind(), io::ErrorKind::NotFound);
        });
    }

    #[test]
    fn what_is_not_open_or_not_ours_is_not_taken_over() {
        isolated(|| {
            for numbers in [&[Number(1000)][..], &[Number(2)], &[Number(-1)]] {
                assert!(Unpacked::take_over(numbers).is_err(), "{numbers:?}");
            }
        });
    }
}
