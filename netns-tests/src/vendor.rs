//! The vendor's side: throw-away licenses signed by the key that `scripts/setup` made outside version control.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use arctic::model::UnixTime;

use crate::agent::license_binary;

/// What a license grants.
#[derive(Debug, Clone)]
pub struct Grant {
    /// `None`: a new customer.
    pub customer_id: Option<String>,
    pub max_nodes: u32,
    pub max_services: u32,
    pub features: String,
    /// From issue to expiry; not used where `expires_at` is given.
    pub days: u32,
    /// Instead of now.
    pub issued_at: Option<UnixTime>,
    pub expires_at: Option<UnixTime>,
}

impl Default for Grant {
    fn default() -> Grant {
        Grant {
            customer_id: None,
            max_nodes: 5,
            max_services: 20,
            features: "*".to_owned(),
            days: 60,
            issued_at: None,
            expires_at: None,
        }
    }
}

/// Signs with the throw-away key.
pub struct Vendor {
    key: PathBuf,
}

impl Vendor {
    /// The key in `ARCTIC_VENDOR_DIR`, or in `.vendor/` of the working directory or of one above it.
    pub fn find() -> Result<Vendor> {
        if let Some(directory) = std::env::var_os("ARCTIC_VENDOR_DIR") {
            return Vendor::in_directory(Path::new(&directory));
        }
        let working = std::env::current_dir()?;
        let found = working.ancestors().map(|above| above.join(".vendor")).find(|vendor| vendor.is_dir());
        Vendor::in_directory(&found.context("no .vendor directory here or above: run scripts/setup")?)
    }

    fn in_directory(directory: &Path) -> Result<Vendor> {
        let key = directory.join("vendor.key");
        let key = key.canonicalize().with_context(|| format!("{}: run scripts/setup", key.display()))?;
        Ok(Vendor { key })
    }

    /// The file of a public key of this vendor.
    pub fn public_key(&self, key_id: &str) -> PathBuf {
        self.key.with_file_name(format!("{key_id}.pub"))
    }

    /// Writes a signed license to `out`.
    pub fn issue(&self, grant: &Grant, out: &Path) -> Result<()> {
        let mut command = Command::new(license_binary()?);
        command.arg("issue").arg("--key").arg(&self.key).arg("--out").arg(out);
        command.args(["--max-nodes", &grant.max_nodes.to_string(), "--max-services", &grant.max_services.to_string()]);
        command.args(["--features", &grant.features]);
        match grant.expires_at {
            Some(expires_at) => command.args(["--expires-at", &expires_at.to_string()]),
            None => command.args(["--days", &grant.days.to_string()]),
        };
        if let Some(issued_at) = grant.issued_at {
            command.args(["--issued-at", &issued_at.to_string()]);
        }
        if let Some(customer_id) = &grant.customer_id {
            command.args(["--customer-id", customer_id]);
        }
        let output = command.output().context("running arctic-license")?;
        ensure!(output.status.success(), "arctic-license issue: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}
