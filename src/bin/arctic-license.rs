//! The vendor's tool: makes keys, signs and checks licenses (licensing.md §6). Never installed on hosts.

use anyhow::{Context, Result, anyhow, bail, ensure};
use arctic::{
    env::{Clock, SystemClock, system_seed},
    license::{
        Features, KNOWN_FEATURES, LICENSE_MAX_BYTES, LicenseDocument, Terms, TrustRoots, grace_ends_at, key_id,
        read_only_ends_at, warning_begins_at,
    },
    model::{CustomerId, LicenseId, PublicKey, Rng, SigningKey, UnixTime, VERSION},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use clap::{Args, Parser, Subcommand};
use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};
use zeroize::Zeroizing;

const VENDOR_KEY: &str = "vendor.key";
const VENDOR_KEY_MODE: u32 = 0o600;
const PUBLIC_KEY_MODE: u32 = 0o644;
const KEY_FILE_MAX_BYTES: usize = 4096;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes license keys, signs licenses and checks them
#[derive(Parser)]
#[command(name = "arctic-license", version = VERSION)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a vendor key: DIR/vendor.key (secret) and DIR/<key_id>.pub
    Keygen {
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Replace an existing vendor.key, and write into a git work tree
        #[arg(long)]
        force: bool,
    },
    /// Sign a license
    Issue(Box<Issue>),
    /// Print the fields of a license and the dates of its states, without verifying it
    Inspect { file: PathBuf },
    /// Check who signed a license: exit 0, or 1 with the reason
    Verify {
        file: PathBuf,
        /// Public key file
        #[arg(long = "pub", value_name = "K")]
        public_key: PathBuf,
    },
}

#[derive(Args)]
struct Issue {
    /// The vendor.key that signs
    #[arg(long, value_name = "F")]
    key: PathBuf,
    /// Keep it the same across renewals; a new one is made when missing
    #[arg(long)]
    customer_id: Option<CustomerId>,
    #[arg(long)]
    customer_name: Option<String>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_nodes: u32,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_services: u32,
    /// Comma-separated: kcp, ip_tunnel, transparent_mode, macvlan, qos; or `*`; or empty
    #[arg(long, value_name = "A,B", value_delimiter = ',', required = true)]
    features: Vec<String>,
    /// Days from issue to expiry
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u32).range(1..),
          conflicts_with = "expires_at", required_unless_present = "expires_at")]
    days: Option<u32>,
    #[arg(long)]
    license_id: Option<LicenseId>,
    /// RFC 3339; default now
    #[arg(long, value_name = "TIME", value_parser = UnixTime::parse_rfc3339)]
    issued_at: Option<UnixTime>,
    /// RFC 3339, instead of --days
    #[arg(long, value_name = "TIME", value_parser = UnixTime::parse_rfc3339)]
    expires_at: Option<UnixTime>,
    /// File to write; default standard output
    #[arg(long, value_name = "F")]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Action::Keygen { out, force } => keygen(&out, force),
        Action::Issue(issue) => issue.run(),
        Action::Inspect { file } => inspect(&file),
        Action::Verify { file, public_key } => verify(&file, &public_key),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn keygen(dir: &Path, force: bool) -> Result<()> {
    let dir = std::path::absolute(dir).with_context(|| format!("cannot resolve {}", dir.display()))?;
    let secret_file = dir.join(VENDOR_KEY);
    ensure!(
        force || !secret_file.exists(),
        "{} exists; licenses signed by it would be orphaned. --force replaces it",
        secret_file.display()
    );
    if let Some(tree) = tracking_work_tree(&dir)? {
        ensure!(
            force,
            "{} is inside the git work tree {} and not ignored there; a private key must not be committed. \
             Choose another directory, ignore it, or pass --force",
            secret_file.display(),
            tree.display()
        );
    }
    let key = SigningKey::from_seed(random_seed()?);
    let public_file = dir.join(format!("{}.pub", key_id(&key.public())));
    let secret = Zeroizing::new(format!("{}\n", *Zeroizing::new(BASE64.encode(key.seed()))));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    if force && secret_file.exists() {
        fs::remove_file(&secret_file).with_context(|| format!("cannot replace {}", secret_file.display()))?;
    }
    write_new(&secret_file, VENDOR_KEY_MODE, secret.as_bytes())?;
    write_new(&public_file, PUBLIC_KEY_MODE, format!("{}\n", key.public()).as_bytes())?;
    print(&format!("Private key: {}\nPublic key:  {}\n", secret_file.display(), public_file.display()))
}

fn random_seed() -> Result<[u8; 32]> {
    system_seed().map_err(|e| anyhow!("cannot read randomness of the operating system: {e}"))
}

fn write_new(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).with_context(cannot)?;
    file.write_all(content).and_then(|()| file.sync_all()).with_context(cannot)
}

/// The git work tree that would take up a key written to `dir`; none where git ignores it.
fn tracking_work_tree(dir: &Path) -> Result<Option<PathBuf>> {
    let existing = dir.ancestors().find(|a| a.exists()).context("the output directory has no existing parent")?;
    let real = existing.canonicalize().with_context(|| format!("cannot resolve {}", existing.display()))?;
    let Some(tree) = real.ancestors().find(|a| a.join(".git").exists()) else {
        return Ok(None);
    };
    let rest = dir.strip_prefix(existing).unwrap_or(Path::new(""));
    let secret_file = real.join(rest).join(VENDOR_KEY);
    // Without git, or when it declines to look, the key counts as not ignored.
    let ignored = Command::new("git")
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .arg("-C")
        .arg(tree)
        .args(["check-ignore", "--quiet", "--"])
        .arg(&secret_file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    Ok((!ignored).then(|| tree.to_owned()))
}

impl Issue {
    fn run(self) -> Result<()> {
        let key = read_signing_key(&self.key)?;
        let now = UnixTime::from_secs(SystemClock::new().unix().as_secs());
        let mut rng = Rng::from_seed(random_seed()?);
        let issued_at = self.issued_at.unwrap_or(now);
        let expires_at = match (self.expires_at, self.days) {
            (Some(at), _) => at,
            (None, Some(days)) => issued_at.plus(DAY * days),
            (None, None) => bail!("one of --days and --expires-at is needed"),
        };
        let names: Vec<_> = self.features.into_iter().map(|f| f.trim().to_owned()).filter(|f| !f.is_empty()).collect();
        for name in names.iter().filter(|n| *n != "*" && !KNOWN_FEATURES.contains(&n.as_str())) {
            eprintln!("Warning: agents of this version know no feature {name:?} and will ignore it");
        }
        let terms = Terms {
            license_id: self.license_id.unwrap_or_else(|| LicenseId::mint(now, &mut rng)),
            customer_id: self.customer_id.unwrap_or_else(|| CustomerId::mint(now, &mut rng)),
            customer_name: self.customer_name,
            issued_at,
            expires_at,
            max_nodes: self.max_nodes,
            max_services: self.max_services,
            features: Features::from_names(names)?,
        };
        let license = LicenseDocument::issue(&key, terms)?;
        let text = format!("{}\n", serde_json::to_string_pretty(license.as_value())?);
        match self.out {
            None => print(&text),
            Some(file) => fs::write(&file, text).with_context(|| format!("cannot write {}", file.display())),
        }
    }
}

fn inspect(file: &Path) -> Result<()> {
    let license = read_license(file)?;
    let expires_at = license.expires_at();
    let features: Vec<_> = license.features().names().map(shown).collect();
    let lines = [
        ("License ID", license.license_id().to_string()),
        ("Customer ID", license.customer_id().to_string()),
        ("Customer Name", license.customer_name().map_or("-".into(), shown)),
        ("Issued", license.issued_at().to_string()),
        ("Expires", expires_at.to_string()),
        ("Max Nodes", license.max_nodes().to_string()),
        ("Max Services", license.max_services().to_string()),
        ("Features", if features.is_empty() { "-".into() } else { features.join(", ") }),
        ("Key ID", license.key_id().to_string()),
        ("Signature", "not verified".into()),
        ("", String::new()),
        ("valid", format!("until {}", warning_begins_at(expires_at))),
        ("warning", format!("from {}", warning_begins_at(expires_at))),
        ("grace_period", format!("from {expires_at}")),
        ("read_only", format!("from {}", grace_ends_at(expires_at))),
        ("suspended", format!("from {}", read_only_ends_at(expires_at))),
    ];
    let text: String = lines
        .iter()
        .map(
            |(label, value)| {
                if label.is_empty() { "\n".into() } else { format!("{:<15}{value}\n", format!("{label}:")) }
            },
        )
        .collect();
    print(&text)
}

fn verify(file: &Path, public_key: &Path) -> Result<()> {
    let key = read_public_key(public_key)?;
    let license = read_license(file)?;
    license.verify(&TrustRoots::from_keys([key]))?;
    print(&format!("License {} is signed by key {}\n", license.license_id(), license.key_id()))
}

fn read_license(file: &Path) -> Result<LicenseDocument> {
    let bytes = read_bounded(file, LICENSE_MAX_BYTES)?;
    LicenseDocument::parse(&bytes).with_context(|| format!("{} is no license", file.display()))
}

fn read_public_key(file: &Path) -> Result<PublicKey> {
    let no_key = || format!("{} is no public key file", file.display());
    let bytes = read_bounded(file, KEY_FILE_MAX_BYTES)?;
    std::str::from_utf8(&bytes).with_context(no_key)?.trim_end().parse().with_context(no_key)
}

fn read_signing_key(file: &Path) -> Result<SigningKey> {
    let bytes = read_bounded(file, KEY_FILE_MAX_BYTES)?;
    // The decoder's own error would quote a byte of the secret.
    let decoded = BASE64.decode(bytes.trim_ascii_end()).ok().map(Zeroizing::new);
    let seed = decoded.and_then(|d| <[u8; 32]>::try_from(d.as_slice()).ok());
    let seed = seed.with_context(|| format!("{} is no vendor key file", file.display()))?;
    Ok(SigningKey::from_seed(seed))
}

/// Reads at most one byte more than `max_bytes`, so that the caller's own check of the size can speak.
fn read_bounded(file: &Path, max_bytes: usize) -> Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    fs::File::open(file)
        .and_then(|f| f.take(max_bytes as u64 + 1).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", file.display()))?;
    Ok(bytes)
}

/// Text from an unverified document, without the control characters that a terminal would obey.
fn shown(text: &str) -> String {
    text.escape_debug().to_string()
}

fn print(text: &str) -> Result<()> {
    io::stdout().lock().write_all(text.as_bytes()).context("cannot write to standard output")
}
