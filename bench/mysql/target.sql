-- The row of bench/source.sql with two secondary indexes, twice: for cutover, and for plain statements.
DROP DATABASE IF EXISTS bench;
DROP DATABASE IF EXISTS cutover;
CREATE DATABASE bench CHARACTER SET utf8mb4;
CREATE USER IF NOT EXISTS 'bench'@'%' IDENTIFIED WITH mysql_native_password BY 'bench';
GRANT ALL ON bench.* TO 'bench'@'%';
GRANT ALL ON cutover.* TO 'bench'@'%';
USE bench;
SOURCE bench/source.sql;
ALTER TABLE accounts ADD KEY (k), ADD KEY (created);
CREATE TABLE plain LIKE accounts;
