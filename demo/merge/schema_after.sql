-- What cutover runs once, when the copy is complete.
CREATE UNIQUE INDEX accounts_email ON accounts (email);
CREATE INDEX requests_event ON requests (event_id);
ALTER TABLE requests ADD CONSTRAINT requests_event_fk FOREIGN KEY (event_id) REFERENCES events;
CREATE INDEX notifications_recipient ON notifications (recipient, sent_at);
