//! headwater between real PostgreSQL servers, with faults.
//!
//! One binary, so that its tests share two clusters. Each test's name is the promise that it keeps.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a panic is how a test fails")]
#![allow(unreachable_pub, reason = "one binary: nothing of it is anybody else's")]
#![allow(clippy::print_stdout, reason = "what a failed test prints is for its reader")]

mod support;

mod ahead;
mod attacks;
mod basics;
mod cascades;
mod certificates;
mod check;
mod check_refused;
mod check_tells;
mod check_warns;
mod columns;
mod constraints;
mod conflicts;
mod crash;
mod cutover;
mod docs;
mod ddl;
mod differences;
mod disk;
mod errors;
mod every_wait;
mod evolving;
mod failover;
mod faults;
mod first_hour;
mod explain;
mod expressions;
mod golden;
mod handover;
mod halts;
mod hostile;
mod http_clients;
mod identities;
mod idle;
mod labels;
mod impostor;
mod init;
mod large;
mod leadership;
mod links;
mod lock;
mod locks;
mod lost;
mod logs;
mod marks;
mod metrics;
mod not_carried;
mod owners;
mod page;
mod plan;
mod pooler;
mod prefix;
mod resnapshot;
mod reviewed;
mod resync;
mod printable;
mod prepared;
mod rewrites;
mod prometheus;
mod publications;
mod reading;
mod reconnects;
mod schemas;
mod security;
mod sequences;
mod settings;
mod settle;
mod set_aside;
mod shapes;
mod snapshot;
mod startups;
mod statements;
mod status;
mod stopping;
mod swaps;
mod systemd;
mod teardown;
mod takeover;
mod starved;
mod streams;
mod verify;
mod verify_states;
mod verify_truth;
mod tables;
mod truncate;
mod types;
mod upgraded;
mod waits;
mod values;
