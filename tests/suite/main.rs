//! The integration tests, linked once.
//!
//! `gateway` starts the real binary, `client` and `sink` are what stands on both sides of it.

mod addresses;
mod attack;
mod auth;
mod bytes;
mod client;
mod config;
mod control;
mod crash;
mod damage;
mod destinations;
mod dialogue;
mod dialogues;
mod dns;
mod durability;
mod edge_lists;
mod etrn;
mod floods;
mod fuzz;
mod gateway;
mod interop;
mod limits_and_floods;
mod lists;
mod lmtp;
mod models;
mod mx;
mod mx_world;
mod nameserver;
mod notices;
mod one_flight;
mod overload;
mod peers;
mod postfix;
mod proxies;
mod queue;
mod relay;
mod route;
mod shutdown;
mod simulation;
mod sink;
mod soup;
mod strangers;
mod submission;
mod tls;
mod tls_programs;
