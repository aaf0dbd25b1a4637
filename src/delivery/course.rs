//! Courses: what routes say about how mail goes on.  Routes that say the same share one.

use std::net::IpAddr;
use std::sync::Arc;

use super::outcome::RetryPolicy;
use crate::auth::SmartHostLogin;
use crate::config::{Config, Route, RouteIndex, Schedule, Target};
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
    /// What they log in with.
    pub login: Option<Arc<SmartHostLogin>>,
    /// When it is tried again, how long, and when its sender is told that it is late.
    pub schedule: Schedule,
    /// The same as the judge of outcomes needs it.
    pub retry: RetryPolicy,
    /// Whether each recipient's mail has a reverse-path of its own.
    pub verp: bool,
    /// For mail that requires TLS all the way (RFC 8689): the DNS's word on who the mail
    /// exchangers are must be authentic too.
    pub requires_tls: bool,
}

/// The courses of a configuration, each once; one of them holds what no route leads to,
/// and one what the edge filter keeps back.
pub struct Courses {
    courses: Vec<Course>,
    of_route: Vec<CourseIndex>,
    /// Those of mail that requires TLS.
    secure_of_route: Vec<CourseIndex>,
    unrouted: CourseIndex,
    quarantine: CourseIndex,
}

impl Courses {
    /// Those of a configuration.
    pub fn new(config: &Config) -> Courses {
        let mut all = Courses {
            courses: Vec::new(),
            of_route: Vec::new(),
            secure_of_route: Vec::new(),
            unrouted: CourseIndex(0),
            quarantine: CourseIndex(0),
        };
        for route in config.routes.iter() {
            let course = Course::new(route, route.schedule(&config.queue));
            let place = all.place(course);
            all.of_route.push(place);
        }
        let everything = "*".parse().expect("a star is a pattern");
        let nowhere = Route::new(everything, Target::Hold);
        all.courses.push(Course::new(&nowhere, config.queue.clone()));
        all.unrouted = CourseIndex(all.courses.len() as u32 - 1);
        for route in config.routes.iter() {
            let course = Course::new(route, route.schedule(&config.queue)).secured();
            let place = all.place(course);
            all.secure_of_route.push(place);
        }
        // Last and by itself, so that no route shares it.
        all.courses.push(Course::new(&nowhere, config.queue.clone()));
        all.quarantine = CourseIndex(all.courses.len() as u32 - 1);
        all
    }

    fn place(&mut self, course: Course) -> CourseIndex {
        let known = self.courses.iter().position(|known| *known == course);
        let place = known.unwrap_or_else(|| {
            self.courses.push(course);
            self.courses.len() - 1
        });
        CourseIndex(place as u32)
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
    pub fn of(&self, route: RouteIndex) -> CourseIndex {
        self.of_route[route.0 as usize]
    }

    /// The course of a route for mail that requires TLS; the same one where that changes nothing.
    pub fn secure_of(&self, route: RouteIndex) -> CourseIndex {
        self.secure_of_route[route.0 as usize]
    }

    /// The course of messages to which no route leads since the configuration changed.
    pub fn unrouted(&self) -> CourseIndex {
        self.unrouted
    }

    /// The course of messages that the edge filter has kept back.
    pub fn quarantine(&self) -> CourseIndex {
        self.quarantine
    }
}

impl Course {
    fn new(route: &Route, schedule: Schedule) -> Course {
        let retry = RetryPolicy::new(&schedule.retry, schedule.lifetime)
            .expect("a configuration has at least one wait, none of them empty")
            .with_delay_notice(schedule.delay_notice.after());
        Course {
            target: route.to.clone(),
            source: route.source,
            tls: route.tls(),
            login: route.login.clone(),
            schedule,
            retry,
            verp: route.verp,
            requires_tls: false,
        }
    }

    /// The same for mail that requires TLS all the way.  Where mail is delivered the way ends.
    fn secured(self) -> Course {
        match self.target {
            Target::Mx | Target::Smtp { .. } | Target::Smtps { .. } => {
                Course { tls: TlsPolicy::Verified, requires_tls: true, ..self }
            }
            _ => self,
        }
    }
}
