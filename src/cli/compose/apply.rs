//! `compose diff` and `compose apply` (compose.md §3 and §4).

use super::{
    backup,
    lease::Lease,
    load::{self, load, load_text, read_text},
    offline::cannot_write,
    run::{Interrupts, Outcome, Run},
    show::{plan_object, plan_text},
    survey::{self, Survey, survey},
};
use crate::{
    cli::{
        args::{ApplyArgs, DiffArgs, EnvArg, Globals, ReachArgs},
        bootstrap::read_license,
        client::Call,
        errors::{CliError, Exit},
        files,
        prompt::{Consent, confirm},
        session::{Session, print},
    },
    compose::{self, Action, Change, ClusterFile, Plan, Rules, SavedPlan, Symbol, steps},
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// A sync calls every peer (api.md §2: 60 s).
const SYNC_PATIENCE: Duration = Duration::from_secs(65);

pub async fn diff(globals: &Globals, args: &DiffArgs) -> Result<(), CliError> {
    super::refuse_peer_flag(globals)?;
    let loaded = load(globals, &args.file.path, &args.reach.env, Rules::Full)?;
    load::show_findings(globals, &loaded.name, &loaded.text, &loaded.warnings);
    let survey = survey(globals, &loaded.file, &args.reach).await?;
    let plan = compose::plan(&loaded.file, &survey.live, &survey.contacts, args.reach.prune);
    warn(&survey, &plan);
    if let Some(path) = &args.out {
        let directory = std::path::absolute(&loaded.directory).unwrap_or_else(|_| loaded.directory.clone());
        let directory = directory.display().to_string();
        let saved = SavedPlan::new(directory, &loaded.file, &survey.live, &survey.contacts, args.reach.prune);
        let text = serde_json::to_string_pretty(&saved)
            .map_err(|e| CliError::new(Exit::General, "INTERNAL", format!("cannot write the plan: {e}")))?;
        files::write_private(path, &format!("{text}\n")).map_err(|e| cannot_write(path, &e))?;
        survey.session.log.hint(&format!("Plan saved; carry it out with: arctic compose apply {}", path.display()));
    }
    show(&survey.session, &plan, plan_object(&plan))?;
    if !survey.away.is_empty() {
        return Err(away_error(&survey.away));
    }
    match args.exit_code && !plan.is_empty() {
        true => Err(CliError::new(Exit::Pending, "CHANGES_PENDING", "changes are pending")),
        false => Ok(()),
    }
}

/// Prints a plan, or that there is none.
fn show(session: &Session, plan: &Plan, object: Value) -> Result<(), CliError> {
    let text = plan_text(plan);
    let text = if plan.is_empty() { text_of_none(&text) } else { text };
    session.print_result(text.trim_end(), object)
}

/// What is kept is shown also when nothing has to be done.
fn text_of_none(text: &str) -> String {
    let kept: Vec<&str> = text.lines().filter(|l| !l.starts_with("Plan: ")).collect();
    kept.into_iter().chain(["No changes"]).collect::<Vec<_>>().join("\n")
}

fn warn(survey: &Survey, plan: &Plan) {
    for (name, reason) in &survey.away {
        survey.session.log.warn(&format!("peer {name} does not answer: {reason}"));
    }
    for warning in &plan.warnings {
        survey.session.log.warn(warning);
    }
}

fn away_error(away: &[(String, String)]) -> CliError {
    let names: Vec<&str> = away.iter().map(|(name, _)| name.as_str()).collect();
    let text = format!("went on without {}", names.join(", "));
    let error = CliError::new(Exit::Degraded, "PARTIAL_FAILURE", text);
    away.iter().fold(error, |error, (name, reason)| error.with_fact(name, reason))
}

/// What is applied, whichever way it came.
struct Wanted {
    name: String,
    file: ClusterFile,
    directory: PathBuf,
    saved: Option<SavedPlan>,
}

pub async fn apply(globals: &Globals, args: &ApplyArgs) -> Result<(), CliError> {
    super::refuse_peer_flag(globals)?;
    let wanted = wanted(globals, args)?;
    let reach = ReachArgs {
        prune: wanted.saved.as_ref().map_or(args.reach.prune, |saved| saved.prune),
        ignore_unreachable: args.reach.ignore_unreachable,
        credentials_file: args.reach.credentials_file.clone(),
        env: EnvArg::default(),
    };
    let survey = survey(globals, &wanted.file, &reach).await?;
    if let Some(saved) = &wanted.saved {
        refuse_stale(saved, &survey)?;
    }
    let plan = compose::plan(&wanted.file, &survey.live, &survey.contacts, reach.prune);
    warn(&survey, &plan);
    let license = match needs_license(&plan) {
        true => Some(license_path(args, &wanted).and_then(|path| read_license(&path))?),
        false => None,
    };
    let job = Job {
        purpose: format!("compose apply {}", file_name(&wanted.name)),
        may_replan: globals.yes && wanted.saved.is_none(),
        takes: |_| true,
        file: wanted.file,
        plan,
        reach,
        license,
        save_config: args.save_config,
        confirm_within: args.confirm_within,
    };
    carry_out(globals, survey, job).await
}

fn wanted(globals: &Globals, args: &ApplyArgs) -> Result<Wanted, CliError> {
    let text = read_text(&args.path)?;
    let name = load::name_of(&args.path);
    if SavedPlan::is_one(&text) {
        if args.reach.prune {
            return Err(CliError::usage("--prune is part of the plan: give it to `compose diff`"));
        }
        let saved = SavedPlan::parse(&text)
            .map_err(|e| CliError::new(Exit::General, "FILE_INVALID", format!("{name} is not valid: {e}")))?;
        let (file, directory) = (saved.file.clone(), PathBuf::from(&saved.directory));
        return Ok(Wanted { name, file, directory, saved: Some(saved) });
    }
    let loaded = load_text(globals, &args.path, text, &args.reach.env, Rules::Full)?;
    if args.strict && !loaded.warnings.is_empty() {
        return Err(load::invalid(globals, &name, &loaded.text, &loaded.warnings));
    }
    if !args.skip_validate {
        load::show_findings(globals, &name, &loaded.text, &loaded.warnings);
    }
    Ok(Wanted { name, file: loaded.file, directory: loaded.directory, saved: None })
}

fn file_name(name: &str) -> String {
    let short = Path::new(name).file_name().map_or(name.to_owned(), |n| n.to_string_lossy().into_owned());
    short.chars().filter(|c| !c.is_control()).take(100).collect()
}

fn refuse_stale(saved: &SavedPlan, survey: &Survey) -> Result<(), CliError> {
    let moved = saved.moved(&survey.live, &survey.contacts);
    if moved.is_empty() {
        return Ok(());
    }
    let error = CliError::new(Exit::General, "PLAN_STALE", "plan is stale");
    let error = moved.iter().take(3).fold(error, |error, what| error.with_fact("moved", what));
    Err(error.with_hint("arctic compose diff FILE --out PLAN"))
}

fn needs_license(plan: &Plan) -> bool {
    plan.changes.iter().any(|c| c.action == Action::Join { bootstrap: true })
}

fn license_path(args: &ApplyArgs, wanted: &Wanted) -> Result<PathBuf, CliError> {
    let listed = wanted.file.license.as_ref().map(|path| wanted.directory.join(path));
    args.license_file.clone().or(listed).ok_or_else(|| {
        let text = "peers have to be bootstrapped, and no license is given";
        CliError::new(Exit::General, "MISSING_FIELD", text)
            .with_hint("license: FILE in the cluster file, or --license-file")
    })
}

/// A plan that is ready to be carried out.
pub struct Job {
    pub purpose: String,
    /// Whether a plan that nobody has seen may be carried out.
    pub may_replan: bool,
    /// Which changes of a plan are wanted.
    pub takes: fn(&Change) -> bool,
    pub file: ClusterFile,
    pub plan: Plan,
    pub reach: ReachArgs,
    pub license: Option<Box<serde_json::value::RawValue>>,
    pub save_config: bool,
    pub confirm_within: Option<Duration>,
}

/// Steps 3 to 9 of compose.md §4.
pub async fn carry_out(globals: &Globals, survey: Survey, mut job: Job) -> Result<(), CliError> {
    let Survey { session, mut live, mut contacts, mut away, seat } = survey;
    if job.plan.is_empty() || globals.dry_run {
        if !job.plan.is_empty() {
            session.log.hint("Dry run: nothing was changed.");
        }
        show(&session, &job.plan, plan_object(&job.plan))?;
        return if away.is_empty() { Ok(()) } else { Err(away_error(&away)) };
    }
    if !session.view.is_structured() {
        print(&plan_text(&job.plan));
    }
    if Consent::of(globals)? == Consent::Ask {
        confirm("Apply these changes?", &what_goes(&job.plan))?;
    }
    let interrupts = Interrupts::watch()?;
    let lease = match (seat, &live.cluster_id) {
        (Some(_), Some(cluster)) => Some(Lease::take(&session, cluster, &job.purpose).await?),
        _ => None,
    };
    let mut prepared = Ok(None);
    if seat.is_some() {
        prepared = prepare(&session, &mut job, &mut live, &mut contacts, &mut away).await;
    }
    let mut run = Run::new(globals, session, &job, &live, &contacts, seat, lease, interrupts);
    let outcome = match prepared {
        Ok(spare) => run.all(steps(&job.file, &job.plan, spare)).await,
        Err(e) => Err(e),
    };
    let (session, released) = run.finish().await;
    if let Err(e) = &released {
        session.log.warn(&format!("the cluster lock was not released, it ends by itself: {}", e.text));
    }
    let outcome = outcome?;
    report(&session, &job, &outcome)?;
    verdict(outcome, &away)
}

/// What is left to do once nobody else can change anything: look again, keep a backup, ask the license.
///
/// Members may have known more than the called agent, or somebody was faster: then the plan is made anew, unless an
/// operator or a file said yes to another one. Returns how many more services the license allows.
async fn prepare(
    session: &Session,
    job: &mut Job,
    live: &mut compose::Live,
    contacts: &mut [compose::Contact],
    away: &mut Vec<(String, String)>,
) -> Result<Option<u64>, CliError> {
    let planned = live.digests();
    session.call(Call::post_empty("/v1/cluster/sync").patience(SYNC_PATIENCE)).await?;
    *live = survey::live_state(session, contacts, away, &job.file, job.reach.ignore_unreachable).await?;
    if live.digests() != planned {
        if !job.may_replan {
            let error = CliError::new(Exit::General, "PLAN_STALE", "plan is stale");
            return Err(error.with_hint("the cluster has changed meanwhile: look at the plan again"));
        }
        let plan = compose::plan(&job.file, live, contacts, job.reach.prune);
        job.plan = Plan { changes: plan.changes.into_iter().filter(job.takes).collect(), ..plan };
        session.log.hint("The cluster has changed meanwhile; the plan is now:");
        session.log.hint(plan_text(&job.plan).trim_end());
    }
    if let Some(cluster) = &live.cluster_id {
        let path = backup::save(session, cluster, live)?;
        session.log.verbose(&format!("Backup: {}", path.display()));
    }
    spare_services(session).await
}

fn what_goes(plan: &Plan) -> Vec<String> {
    let gone = plan.changes.iter().filter(|c| matches!(c.symbol, Symbol::Delete | Symbol::Replace));
    let services = gone.map(|c| format!("service {} ({})", c.name, c.about));
    let routes = plan.changes.iter().filter(|c| c.symbol == Symbol::Change).flat_map(|c| {
        let deleted = c.routes.iter().filter(|r| r.symbol == Symbol::Delete);
        deleted.map(|r| format!("route {} of service {}", r.words(), c.name))
    });
    services.chain(routes).collect()
}

/// How many more services the license allows.
async fn spare_services(session: &Session) -> Result<Option<u64>, CliError> {
    let license = session.call(Call::get("/v1/license")).await?;
    let number = |key: &str| license["services"][key].as_u64();
    Ok(number("max").zip(number("used")).map(|(max, used)| max.saturating_sub(used)))
}

fn report(session: &Session, job: &Job, outcome: &Outcome) -> Result<(), CliError> {
    let named = |(title, reason): &(String, String)| json!({ "step": title, "reason": reason });
    let mut object = plan_object(&job.plan);
    object["done"] = json!(outcome.done);
    object["failed"] = outcome.failed.iter().map(|(title, e)| named(&(title.clone(), e.text.clone()))).collect();
    object["skipped"] = outcome.skipped.iter().map(named).collect();
    if session.view.is_structured() {
        return session.print_result("", object);
    }
    for (title, error) in &outcome.failed {
        print(&format!("failed   {title}: {}\n", error.text));
    }
    for (title, reason) in &outcome.skipped {
        print(&format!("skipped  {title}: {reason}\n"));
    }
    let total = outcome.done.len() + outcome.failed.len() + outcome.skipped.len();
    print(&format!("Applied: {} of {total} steps\n", outcome.done.len()));
    Ok(())
}

fn verdict(outcome: Outcome, away: &[(String, String)]) -> Result<(), CliError> {
    let Outcome { done, failed, skipped, interrupted, not_applied } = outcome;
    if let Some(exit) = interrupted {
        let text = format!("interrupted after {} steps; the next apply does the rest", done.len());
        return Err(CliError::new(exit, "INTERRUPTED", text));
    }
    if let Some((title, first)) = failed.first() {
        let open = failed.len() + skipped.len();
        // Nothing was done and one thing is to blame: its own exit code says more.
        if done.is_empty() && first.exit != Exit::General {
            return Err(first.clone().with_fact("step", title));
        }
        let text = format!("{open} steps were not done: {title}: {}", first.text);
        let error = CliError::new(Exit::Degraded, "PARTIAL_FAILURE", text);
        let error = first.facts.iter().fold(error, |error, (name, fact)| error.with_fact(name, fact));
        return Err(error.with_hint("apply again once the cause is gone: it does what is missing"));
    }
    if !away.is_empty() {
        return Err(away_error(away));
    }
    not_applied.map_or(Ok(()), Err)
}
