//! One attempt: from a task to an object or a failure.

pub mod attempt;
pub mod before;
pub mod body;
pub mod curl;
pub mod pace;
pub mod patience;
pub mod request;
pub mod robots;
pub mod route;
pub mod transfer;
