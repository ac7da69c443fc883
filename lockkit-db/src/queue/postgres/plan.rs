//! What a plan says that it should not.

use crate::queue::checkup::PlanProblem;

/// The hot table.
const JOBS: &str = " on lockkit_job";

/// The index that lists all of them. The others list those of one state, and to walk over one is to walk over what is
/// asked for.
const ALL_JOBS: &str = "using lockkit_job_pkey";

/// The steps of a plan, as EXPLAIN prints it, that cost more with each job that there is.
///
/// | step | why |
/// |---|---|
/// | a Seq Scan of the jobs | it reads all of them |
/// | an Index Scan by their ids that has a filter and no condition | the same; but not if they are few, for then it is right |
/// | a Sort of what is scanned of the jobs | no index gives the order, so all are read to find the first |
/// | an Incremental Sort of that | an index gives a part of the order, so all are read that are alike in that part |
pub(super) fn problems(plan: &[String], few: bool) -> Vec<PlanProblem> {
    let mut problems = Vec::new();
    for (at, line) in plan.iter().enumerate() {
        let Some(node) = Line::read(line, at).node() else {
            continue;
        };
        let below = || plan.iter().enumerate().skip(at + 1);
        if matches!(node, "Sort" | "Incremental Sort") && sorts_jobs(plan, at) {
            let mut keys = below().map(|(_, line)| line.trim());
            let key = keys.find_map(|line| line.strip_prefix("Sort Key: "));
            problems.push(format!("{node} by {}", key.unwrap_or("something")));
        } else if scans_jobs(node) && node.contains("Seq Scan") {
            problems.push(node.to_owned());
        } else if scans_jobs(node) && node.contains(ALL_JOBS) && !few {
            let attributes = below().map_while(|(at, line)| match Line::read(line, at) {
                Line::Other { text, .. } => Some(text),
                Line::Node { .. } => None,
            });
            let has = |what| attributes.clone().any(|text| text.starts_with(what));
            if has("Filter:") && !has("Index Cond:") {
                problems.push(format!("{node}, with a filter alone"));
            }
        }
    }
    let problem = |step| PlanProblem { step };
    problems.into_iter().map(problem).collect()
}

/// A line of a plan, and how far it is indented.
enum Line<'a> {
    /// A step.
    Node { indent: usize, text: &'a str },
    /// Something about the step before it, or the name of a part of the statement whose steps follow.
    Other { indent: usize, text: &'a str },
}

impl<'a> Line<'a> {
    fn read(line: &'a str, at: usize) -> Self {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        match text.strip_prefix("->") {
            Some(text) => Self::Node {
                indent,
                text: text.trim(),
            },
            None if at == 0 => Self::Node { indent, text },
            None => Self::Other { indent, text },
        }
    }

    fn node(self) -> Option<&'a str> {
        match self {
            Self::Node { text, .. } => Some(text),
            Self::Other { .. } => None,
        }
    }
}

/// Whether a step reads the jobs' table or an index of it, and not one whose name begins alike.
fn scans_jobs(node: &str) -> bool {
    let table = node.split_once(JOBS).map(|(_, rest)| rest);
    node.contains("Scan") && table.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// Whether what the Sort at a line gets comes from a scan of the jobs. Other parts of the statement may be written
/// below it too, as `CTE name`, `InitPlan 1`, `SubPlan 1`: these it does not sort.
fn sorts_jobs(plan: &[String], at: usize) -> bool {
    let Line::Node { indent: own, .. } = Line::read(&plan[at], at) else {
        return false;
    };
    let mut part = None;
    for (at, line) in plan.iter().enumerate().skip(at + 1) {
        match Line::read(line, at) {
            Line::Node { indent, .. } | Line::Other { indent, .. } if indent <= own => break,
            Line::Node { indent, .. } | Line::Other { indent, .. }
                if part.is_some_and(|part| indent > part) => {}
            Line::Other { indent, text } => {
                let is_part = ["CTE ", "InitPlan ", "SubPlan "].map(|part| text.starts_with(part));
                part = is_part.contains(&true).then_some(indent);
            }
            Line::Node { text, .. } if scans_jobs(text) => return true,
            Line::Node { .. } => part = None,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(plan: &str) -> Vec<String> {
        steps_of(plan, false)
    }

    fn steps_of(plan: &str, few: bool) -> Vec<String> {
        let lines: Vec<_> = plan.lines().map(str::to_owned).collect();
        problems(&lines, few)
            .into_iter()
            .map(|one| one.step)
            .collect()
    }

    #[test]
    fn a_sort_is_named_if_it_sorts_jobs_and_not_if_they_are_in_another_part() {
        let jobs = "Limit
  ->  Sort
        Sort Key: lockkit_job.priority, lockkit_job.id
        ->  Result
              One-Time Filter: $6
              ->  Index Scan using lockkit_job_ready on lockkit_job
                    Index Cond: (queue_id = $5)
                    Filter: (state = 0)";
        // Mutant: C72
        assert_eq!(
            steps(jobs),
            ["Sort by lockkit_job.priority, lockkit_job.id"]
        );
        let partly = jobs.replace("->  Sort", "->  Incremental Sort").replace(
            "        ->  Result",
            "        Presorted Key: lockkit_job.priority\n        ->  Result",
        );
        // Mutant: C113
        assert_eq!(
            steps(&partly),
            ["Incremental Sort by lockkit_job.priority, lockkit_job.id"]
        );
        let another = "Sort
  Sort Key: ack.place
  CTE gone
    ->  Delete on lockkit_job j
          ->  Index Scan using lockkit_job_pkey on lockkit_job j
                Index Cond: (id = 1)
  ->  CTE Scan on ack
        Filter: (NOT (hashed SubPlan 1))
        SubPlan 1
          ->  Index Scan using lockkit_job_pkey on lockkit_job
                Index Cond: (id = 1)
  ->  Index Scan using lockkit_done_pkey on lockkit_done
        Filter: (id = 1)";
        assert_eq!(steps(another), [""; 0]);
        let after = another.replace("on ack", "on lockkit_job");
        assert_eq!(steps(&after), ["Sort by ack.place"]);
    }

    #[test]
    fn a_scan_is_named_if_it_reads_all_of_the_jobs() {
        let plan = "Nested Loop
  ->  Seq Scan on lockkit_job j
        Filter: (state = 1)
  ->  Seq Scan on lockkit_jobs
  ->  Parallel Seq Scan on lockkit_job
  ->  Index Scan using lockkit_job_pkey on lockkit_job
        Filter: (state = 1)
  ->  Index Scan using lockkit_job_owner on lockkit_job
        Filter: (state = 1)
  ->  Update on lockkit_job
        ->  Seq Scan on lockkit_session s";
        assert_eq!(
            steps(plan),
            [
                "Seq Scan on lockkit_job j",
                "Parallel Seq Scan on lockkit_job",
                "Index Scan using lockkit_job_pkey on lockkit_job, with a filter alone",
            ]
        );
        assert_eq!(steps_of(plan, true), steps(plan)[..2]);
    }
}
