//! What can go wrong, as callers see it and as the hub sees it.

use std::path::PathBuf;

/// Why a call on the hub did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    /// The hub is away, went away during the call or did not answer in time: what was asked may or may not have happened, so ask again.
    #[error("the hub is not available: {0}")]
    Unavailable(String),
    /// The hub understood and says no.
    #[error("{code}: {message}")]
    Refused {
        /// A code of the public contract, e.g. `IDEMPOTENCY_CONFLICT`.
        code: String,
        /// One sentence for people.
        message: String,
        /// When asking again may help, in milliseconds from now.
        retry_after_ms: Option<u64>,
        /// The job the refusal speaks of.
        job_id: Option<String>,
    },
    /// The request makes no sense; asking again will not help.
    #[error("the request is not valid: {0}")]
    Invalid(String),
    /// The hub's database failed; the hub is about to end and nothing more is acknowledged.
    #[error("the hub failed: {0}")]
    Fatal(String),
}

impl HubError {
    /// A refusal with a code of the public contract.
    pub fn refused(code: &str, message: impl Into<String>) -> Self {
        Self::Refused { code: code.to_owned(), message: message.into(), retry_after_ms: None, job_id: None }
    }

    /// The same refusal, to be tried again after `ms` milliseconds.
    #[must_use]
    pub fn after_ms(mut self, ms: u64) -> Self {
        if let Self::Refused { retry_after_ms, .. } = &mut self {
            *retry_after_ms = Some(ms);
        }
        self
    }

    /// The same refusal, naming a job.
    #[must_use]
    pub fn about(mut self, id: &str) -> Self {
        if let Self::Refused { job_id, .. } = &mut self {
            *job_id = Some(id.to_owned());
        }
        self
    }

    /// Whether it is a refusal with that code.
    pub fn is_code(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }

    /// The job (or the named thing) is not there, or belongs to another tenant.
    pub fn not_found(what: &str) -> Self {
        Self::refused("NOT_FOUND", format!("{what} is not known"))
    }
}

/// Why the hub cannot open its database.
#[derive(Debug, thiserror::Error)]
pub enum HubOpenError {
    /// Another hub works on this directory.
    #[error("another hub holds {path}: end it first, or give this one a data_dir of its own", path = .0.display())]
    Locked(PathBuf),
    /// The database lost something that had been acknowledged, or holds something damaged.
    #[error("the ledger at {path} is damaged: {what}", path = path.display())]
    Damaged {
        /// The database's directory.
        path: PathBuf,
        /// What is wrong and where.
        what: String,
    },
    /// The network is not to be had as the configuration wants it.
    #[error("{0}")]
    Listen(String),
    /// The configuration contradicts itself or the database.
    #[error("the hub's configuration is not usable: {0}")]
    Config(String),
    /// The operating system refused something.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The database itself refused to open.
    #[error("cannot open the database at {path}: {message}", path = path.display())]
    Database {
        /// The database's directory.
        path: PathBuf,
        /// Fjall's own words.
        message: String,
    },
}
