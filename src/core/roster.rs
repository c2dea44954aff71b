//! The workers by their numbers.
//!
//! Each decision is a query over all of them, so they stand in a row: with hundreds of workers a tree's passes would be most
//! of what an event costs.

use std::ops::Index;

use serde::{Deserialize, Serialize};

use super::ids::WorkerId;
use super::worker::Worker;

/// The workers that are not yet reaped, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Roster(Vec<(WorkerId, Worker)>);

impl Roster {
    /// Adds a worker, whose number is higher than any before it.
    pub(super) fn add(&mut self, id: WorkerId, worker: Worker) {
        debug_assert!(self.0.last().is_none_or(|(last, _)| *last < id), "worker {id} is added out of turn");
        self.0.push((id, worker));
    }

    pub(super) fn remove(&mut self, id: WorkerId) {
        if let Some(place) = self.place(id) {
            self.0.remove(place);
        }
    }

    pub(super) fn get(&self, id: WorkerId) -> Option<&Worker> {
        self.place(id).map(|place| &self.0[place].1)
    }

    pub(super) fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.place(id).map(|place| &mut self.0[place].1)
    }

    fn place(&self, id: WorkerId) -> Option<usize> {
        self.0.binary_search_by_key(&id, |(id, _)| *id).ok()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (WorkerId, &Worker)> + Clone {
        self.0.iter().map(|(id, worker)| (*id, worker))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (WorkerId, &mut Worker)> {
        self.0.iter_mut().map(|(id, worker)| (*id, worker))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Worker> + Clone {
        self.0.iter().map(|(_, worker)| worker)
    }

    /// The numbers of those that are as `is` says.
    pub(super) fn which(&self, is: impl Fn(&Worker) -> bool) -> Vec<WorkerId> {
        self.iter().filter(|(_, worker)| is(worker)).map(|(id, _)| id).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Index<WorkerId> for Roster {
    type Output = Worker;

    fn index(&self, id: WorkerId) -> &Worker {
        self.get(id).unwrap_or_else(|| panic!("worker {id} is not there"))
    }
}
