//! Courses: what routes say about how mail goes on.  Routes that say the same share one.

use std::net::IpAddr;

use super::outcome::RetryPolicy;
use crate::config::{Config, Schedule, Target};
use crate::queue::destination::CourseIndex;
use crate::tls::TlsPolicy;

/// How mail goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Course {
    /// Where to.
    pub target: Target,
    /// The address that connections are made from.
    pub source: Option<IpAddr>,
    /// How connections are encrypted.
    pub tls: TlsPolicy,
    /// When it is tried again, how long, and when its sender is told that it is late.
    pub schedule: Schedule,
    /// The same as the judge of outcomes needs it.
    pub retry: RetryPolicy,
    /// Whether each recipient's mail has a reverse-path of its own.
    pub verp: bool,
}

/// The courses of a configuration, each once; the last one holds what no route leads to.
pub struct Courses {
    courses: Vec<Course>,
    of_route: Vec<CourseIndex>,
}

impl Courses {
    /// Those of a configuration.
    pub fn new(config: &Config) -> Courses {
        let mut courses: Vec<Course> = Vec::new();
        let mut of_route = Vec::new();
        for route in config.routes.iter() {
            let schedule = route.schedule(&config.queue);
            let way = (route.source, route.tls());
            let course = Course::new(route.to.clone(), way, schedule, route.verp);
            let known = courses.iter().position(|known| *known == course);
            let place = known.unwrap_or_else(|| {
                courses.push(course);
                courses.len() - 1
            });
            of_route.push(CourseIndex(place as u32));
        }
        courses.push(Course::new(
            Target::Hold,
            (None, TlsPolicy::Off),
            config.queue.clone(),
            false,
        ));
        Courses { courses, of_route }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Course> {
        self.courses.iter()
    }

    /// One of them.
    pub fn get(&self, index: CourseIndex) -> &Course {
        &self.courses[index.0 as usize]
    }

    /// The course of a route.
    pub fn of(&self, route: crate::config::RouteIndex) -> CourseIndex {
        self.of_route[route.0 as usize]
    }

    /// The course of messages to which no route leads since the configuration changed.
    pub fn unrouted(&self) -> CourseIndex {
        CourseIndex(self.courses.len() as u32 - 1)
    }
}

impl Course {
    fn new(
        target: Target,
        (source, tls): (Option<IpAddr>, TlsPolicy),
        schedule: Schedule,
        verp: bool,
    ) -> Course {
        let retry = RetryPolicy::new(&schedule.retry, schedule.lifetime)
            .expect("a configuration has at least one wait, none of them empty")
            .with_delay_notice(schedule.delay_notice.after());
        Course { target, source, tls, schedule, retry, verp }
    }
}
