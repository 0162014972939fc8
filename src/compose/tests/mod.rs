mod layout;
mod plan;
mod reading;
mod schema;
mod world;
