mod layout;
mod plan;
mod reading;
mod world;
